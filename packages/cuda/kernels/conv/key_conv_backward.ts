import { bytesPerElement, type FloatDType, type KeyConvProblem, type Tensor } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";
import { columnSums, tokenChunks } from "../nn/column_sums.js";

/** As in key_conv_backward.cu; columns are taken in multiples of `GROUP`, and `COLUMNS` of them by a CTA of the last kernel. */
const [THREADS, GROUP, COLUMNS] = [128, 8, 32 * 8];
const MOST_GRID_Z = 65535;

/** `Backend.keyConvBackward`. As many columns at once as the workspace has room for. */
export function keyConvBackward(
  device: Device,
  problem: KeyConvProblem & { dOut: Tensor<FloatDType> },
  { dk, dWeights }: { dk: Tensor<FloatDType>; dWeights: Tensor<FloatDType> },
): void {
  const { dtype, tokens, kvHeads, headDim, width, cuSeqlens, k, weights, dOut } = problem;
  const channels = kvHeads * headDim;
  const { chunk, chunks } = tokenChunks(tokens);
  using parts = device.scratch(4 * chunks * dWeights.size);
  const fitting = Math.floor(device.maxWorkspaceBytes / (4 * GROUP * Math.max(1, tokens)));
  const most = GROUP * Math.max(1, fitting);
  for (let first = 0; tokens > 0 && first < channels; first += most) {
    const columns = Math.min(most, channels - first);
    const from = (tensor: Tensor) => pointerOf(tensor) + first * bytesPerElement(dtype);
    using gradient = device.scratch(4 * tokens * columns);
    const layout = (args: Arguments) =>
      args
        .pointer(device.constant(cuSeqlens))
        .int(cuSeqlens.length - 1)
        .int(tokens)
        .int(channels)
        .int(columns)
        .int(width)
        .int(chunk);
    const launch = (name: string, grid: readonly [number, number, number], args: Arguments) =>
      device.launch(device.kernel("key_conv_backward", `${name}_${dtype}`), grid, THREADS, 0, args);
    const items = [ceilDiv(tokens * ceilDiv(columns, GROUP), THREADS), 1, 1] as const;

    const inner = new Arguments().pointer(from(dOut)).pointer(from(k)).pointer(from(weights));
    launch("key_conv_gradient", items, layout(inner.pointer(gradient.pointer)));
    const keys = new Arguments().pointer(from(dOut)).pointer(from(weights));
    launch("key_conv_backward", items, layout(keys.pointer(gradient.pointer).pointer(from(dk))));
    const sums = new Arguments()
      .pointer(from(k))
      .pointer(gradient.pointer)
      .pointer(parts.pointer + 4 * first);
    const grid = [ceilDiv(columns, COLUMNS), chunks, Math.min(width, MOST_GRID_Z)] as const;
    launch("key_conv_weight_parts", grid, layout(sums));
  }
  columnSums(
    device,
    { rows: chunks, columns: dWeights.size, dtype: dWeights.dtype },
    parts.pointer,
    pointerOf(dWeights),
  );
}
