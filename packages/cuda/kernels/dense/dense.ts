import type { AttentionProblem, AttentionResult } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv, NO_WINDOW, SLAB, scoreTileBytes } from "../common/launch.js";
import { tensorCores } from "../common/sm80.js";
import { attendFew } from "../decode/split_attend.js";
import { queryRanges } from "../route/ranges.js";
import { sm80Dense } from "./sm80_dense.js";

/** `Backend.attention`. */
export function attention(
  device: Device,
  problem: AttentionProblem & { causal: boolean },
  outputs: AttentionResult,
): void {
  denseAttention(device, problem, { causal: problem.causal, window: NO_WINDOW }, outputs);
}

/** `Backend.windowAttention`: causal attention that begins later. */
export function windowAttention(
  device: Device,
  problem: AttentionProblem & { window: number },
  outputs: AttentionResult,
): void {
  const window = Math.min(problem.window, NO_WINDOW);
  denseAttention(device, problem, { causal: true, window }, outputs);
}

/** The keys that a query sees. */
interface Sight {
  readonly causal: boolean;
  readonly window: number;
}

/** Dense attention on the kernel that suits the problem. */
function denseAttention(
  device: Device,
  problem: AttentionProblem,
  sight: Sight,
  outputs: AttentionResult,
): void {
  if (problem.tokens === 0 || attendFew(device, problem, sight, outputs)) return;
  if (tensorCores(device, problem)) sm80Dense(device, problem, sight, outputs);
  else plainDense(device, problem, sight, outputs);
}

/** As in score_tile.cuh. */
const [TILE_QUERIES, TILE_THREADS] = [64, 256];

/** Tiles of queries on the float32 units: any dtype and head dimension. */
function plainDense(
  device: Device,
  problem: AttentionProblem,
  { causal, window }: Sight,
  { out, lse }: AttentionResult,
): void {
  const { q, k, v, dtype, heads, kvHeads, headDim, scale } = problem;
  const ranges = queryRanges(device, problem, { causal, most: 4096 });
  const tiles = ceilDiv(ranges.longest, TILE_QUERIES);
  const args = new Arguments()
    .pointer(pointerOf(q))
    .pointer(pointerOf(k))
    .pointer(pointerOf(v))
    .pointer(ranges.table)
    .pointer(pointerOf(out))
    .pointer(pointerOf(lse))
    .int(heads)
    .int(kvHeads)
    .int(headDim)
    .int(Number(causal))
    .int(window)
    .float(scale)
    .int(tiles);
  const grid = [ranges.count * tiles, heads, ceilDiv(headDim, SLAB)] as const;
  const kernel = device.kernel("plain_dense", `plain_dense_${dtype}`);
  device.launch(kernel, grid, TILE_THREADS, scoreTileBytes(headDim), args);
}
