import type { FloatDType, KeyConvHistoryProblem, KeyConvProblem, Tensor } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv, packetElements, rowSuffix } from "../common/launch.js";

/** As in key_conv.cu: tokens and packets of channels of a CTA. */
const [THREADS, TOKENS, COLUMNS] = [128, 32, 16];

/** `Backend.keyConv`. */
export function keyConv(
  device: Device,
  problem: KeyConvProblem & { history?: Tensor<FloatDType> },
  out: Tensor<FloatDType>,
): void {
  const { dtype, tokens, kvHeads, headDim, width, cuSeqlens, k, weights, history } = problem;
  const channels = kvHeads * headDim;
  const args = new Arguments()
    .pointer(pointerOf(k))
    .pointer(pointerOf(weights))
    .pointer(history ? pointerOf(history) : 0)
    .pointer(device.constant(cuSeqlens))
    .int(cuSeqlens.length - 1)
    .pointer(pointerOf(out))
    .int(channels)
    .int(width);
  const grid = [
    ceilDiv(tokens, TOKENS),
    ceilDiv(channels, COLUMNS * packetElements(dtype, channels)),
    1,
  ] as const;
  const kernel = device.kernel("key_conv", `key_conv_${rowSuffix(dtype, channels)}`);
  device.launch(kernel, grid, THREADS, 0, args);
}

/** `Backend.keyConvHistory`. */
export function keyConvHistory(
  device: Device,
  { k, width, cuSeqlens, history }: KeyConvHistoryProblem,
  next: Tensor<FloatDType>,
): void {
  const [, kvHeads, headDim] = k.shape;
  const channels = kvHeads * headDim;
  const batch = cuSeqlens.length - 1;
  const args = new Arguments()
    .pointer(pointerOf(k))
    .pointer(history ? pointerOf(history) : 0)
    .pointer(device.constant(cuSeqlens))
    .int(batch)
    .pointer(pointerOf(next))
    .int(channels)
    .int(width);
  const packets = (batch * (width - 1) * channels) / packetElements(k.dtype, channels);
  const kernel = device.kernel("key_conv", `key_conv_history_${rowSuffix(k.dtype, channels)}`);
  device.launch(kernel, [ceilDiv(packets, THREADS), 1, 1], THREADS, 0, args);
}
