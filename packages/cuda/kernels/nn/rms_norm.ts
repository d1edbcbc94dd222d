import type { FloatDType, RmsNormProblem, Tensor } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";
import { columnSums, tokenChunks } from "./column_sums.js";

const THREADS = 128;
/** Columns that a CTA of `rms_norm_weight_parts` takes. */
const COLUMNS = 32 * 8;

/** `Backend.rmsNorm`. */
export function rmsNorm(
  device: Device,
  { x, weight, epsilon }: RmsNormProblem,
  out: Tensor<FloatDType>,
): void {
  const [tokens, channels] = x.shape;
  const args = new Arguments()
    .pointer(pointerOf(x))
    .pointer(pointerOf(weight))
    .pointer(pointerOf(out))
    .int(channels)
    .float(epsilon);
  device.launch(device.kernel("rms_norm", `rms_norm_${x.dtype}`), [tokens, 1, 1], THREADS, 0, args);
}

/** `Backend.rmsNormBackward`; `dx` is the gradient plus the addend, if there is one. */
export function rmsNormBackward(
  device: Device,
  {
    x,
    weight,
    epsilon,
    dOut,
    addend,
  }: RmsNormProblem & { dOut: Tensor<FloatDType>; addend?: Tensor<FloatDType> },
  { dx, dWeight }: { dx: Tensor<FloatDType>; dWeight: Tensor<FloatDType> },
): void {
  const [tokens, channels] = x.shape;
  const { chunk, chunks } = tokenChunks(tokens);
  using inverses = device.scratch(4 * tokens);
  using parts = device.scratch(4 * chunks * channels);
  const rows = new Arguments()
    .pointer(pointerOf(dOut))
    .pointer(pointerOf(x))
    .pointer(pointerOf(weight))
    .pointer(addend ? pointerOf(addend) : 0)
    .pointer(pointerOf(dx))
    .pointer(inverses.pointer)
    .int(channels)
    .float(epsilon);
  const file = "rms_norm_backward";
  device.launch(device.kernel(file, `rms_norm_backward_${x.dtype}`), [tokens, 1, 1], THREADS, 0, rows);

  const columns = new Arguments()
    .pointer(pointerOf(dOut))
    .pointer(pointerOf(x))
    .pointer(inverses.pointer)
    .pointer(parts.pointer)
    .int(tokens)
    .int(channels)
    .int(chunk);
  const grid = [ceilDiv(channels, COLUMNS), chunks, 1] as const;
  device.launch(device.kernel(file, `rms_norm_weight_parts_${x.dtype}`), grid, THREADS, 0, columns);
  columnSums(device, { rows: chunks, columns: channels, dtype: x.dtype }, parts.pointer, pointerOf(dWeight));
}
