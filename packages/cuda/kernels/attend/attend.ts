import type { AttendProblem, AttentionResult } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv, rowSuffix, SLAB } from "../common/launch.js";
import { tensorCores } from "../common/sm80.js";
import { attendFew } from "../decode/split_attend.js";
import { queryRanges } from "../route/ranges.js";
import { sm80Attend } from "./sm80_attend.js";
import { sm90Attend, sm90Attends } from "./sm90_attend.js";

/** `Backend.attend`. */
export function attend(device: Device, problem: AttendProblem, outputs: AttentionResult): void {
  const { indices, blockSize, causal } = problem.routing;
  const slots = indices.shape[2];
  if (problem.tokens === 0) return;
  const sight = { indices: pointerOf(indices), slots, blockSize, causal };
  if (slots > 0 && attendFew(device, problem, sight, outputs)) return;
  if (slots > 0 && sm90Attends(device, problem)) sm90Attend(device, problem, outputs);
  else if (slots > 0 && tensorCores(device, problem)) sm80Attend(device, problem, outputs);
  else plainAttend(device, problem, outputs);
}

/** As in plain_attend.cu. */
const MOST_WARPS = 4;
/** Shared memory that the queries of a CTA may take. */
const MOST_SHARED = 32 * 1024;

/** A warp for each query of each head: any dtype, head dimension, block size and routing. */
function plainAttend(device: Device, problem: AttendProblem, { out, lse }: AttentionResult): void {
  const { q, k, v, dtype, heads, kvHeads, headDim, scale, routing } = problem;
  const { indices, blockSize, causal } = routing;
  const ranges = queryRanges(device, problem, { blockSize, causal, most: 4096 });
  const queryBytes = 16 * ceilDiv(headDim, 4);
  const warps = Math.max(1, Math.min(MOST_WARPS, Math.floor(MOST_SHARED / queryBytes)));
  const tiles = ceilDiv(ranges.longest, warps);
  const args = new Arguments()
    .pointer(pointerOf(q))
    .pointer(pointerOf(k))
    .pointer(pointerOf(v))
    .pointer(pointerOf(indices))
    .pointer(ranges.table)
    .pointer(pointerOf(out))
    .pointer(pointerOf(lse))
    .int(heads)
    .int(kvHeads)
    .int(headDim)
    .int(blockSize)
    .int(indices.shape[2])
    .int(Number(causal))
    .float(scale)
    .int(tiles);
  const grid = [ranges.count * tiles, heads, ceilDiv(headDim, SLAB)] as const;
  const kernel = device.kernel("plain_attend", `plain_attend_${rowSuffix(dtype, headDim)}`);
  device.launch(kernel, grid, 32 * warps, warps * queryBytes, args);
}
