import type { AttendProblem, AttentionResult } from "@moba-js/tensor";
import type { Device } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";
import { packedNoteBytes, packedRowBytes } from "../common/packed_rows.js";
import { mergeArguments, type PartialOutputs } from "./merge.js";

/** As in merge_packed.cu: warps of a CTA, their stages, and the rows and slots of a stage. */
const [WARPS, STAGES, ROWS, SLOTS] = [4, 2, 8, 8];
/** CTAs whose stages fit in the shared memory of a multiprocessor. */
const RESIDENT: Readonly<Record<number, number>> = { 64: 4, 128: 2 };

/** {@link merge} of packed rows: of bf16, 64 or 128 channels. Suspects have to be listed. */
export function mergePacked(
  device: Device,
  { dtype, heads, headDim, routing }: AttendProblem,
  partials: PartialOutputs,
  outputs: AttentionResult,
): void {
  const slots = SLOTS * (packedRowBytes(headDim) + 4) + 64;
  const stage = ROWS * slots + SLOTS * (packedNoteBytes(headDim) === 0 ? 8 : ROWS * 8);
  const kernel = device.kernel("merge_packed", `merge_packed_${dtype}_d${headDim}`);
  const grid = Math.min(ceilDiv(partials.rows, WARPS * ROWS), RESIDENT[headDim] * device.multiprocessors);
  const args = mergeArguments(heads, routing, partials, outputs);
  device.launch(kernel, [grid, 1, 1], 32 * WARPS, WARPS * STAGES * stage, args);
}
