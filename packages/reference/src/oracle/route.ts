import { blockCount, type CuSeqlens, cuBlocks, sequenceLengths } from "@moba-js/tensor";
import { type BlockRouting, kvHeadOf, type Layout, positionOf, sequences } from "../layout.js";
import { scoreTile } from "../paths/tile.js";
import { centroids } from "./centroids.js";

/** Inputs of block routing in float64. */
export interface RouteInputs extends Layout {
  /** `[T, H, d]` */
  readonly q: Float64Array;
  /** `[Tk, Hkv, d]` */
  readonly k: Float64Array;
  /** `B`. */
  readonly blockSize: number;
  /** `k`, the own block included. */
  readonly topK: number;
  readonly causal: boolean;
}

/**
 * The `count` highest of `scores[0 … n−1]`, by index in ascending order. Equal scores: the lower index wins; NaN counts
 * as −Infinity.
 */
export function selectTop(scores: Float64Array, n: number, count: number): number[] {
  if (count >= n) return Array.from({ length: n }, (_, j) => j);
  // The best so far, from high to low. Later indices lose ties, so only strictly higher scores move up.
  const best: { score: number; index: number }[] = [];
  for (let index = 0; index < n && count > 0; index++) {
    const score = Number.isNaN(scores[index]) ? Number.NEGATIVE_INFINITY : scores[index];
    if (best.length === count && score <= best[count - 1].score) continue;
    let at = best.length === count ? count - 1 : best.length;
    for (; at > 0 && score > best[at - 1].score; at--) best[at] = best[at - 1];
    best[at] = { score, index };
  }
  return best.map(({ index }) => index).sort((a, b) => a - b);
}

/** Queries whose scores are computed together. */
const TILE = 16;

/**
 * Block routing (arXiv 2511.11571, section 2). Causal, with own block `c = floor(t/B)`: block `c`, and of the blocks before it the
 * `min(k−1, c)` with the highest `q·centroid`. Not causal: the `min(k, n)` highest of all. Rows are in ascending order.
 */
export function routeBlocks(inputs: RouteInputs): BlockRouting {
  const { cuSeqlensK, blockSize } = inputs;
  const means = centroids({ ...inputs, cuSeqlens: cuSeqlensK });
  return routeByCentroids({ ...inputs, centroids: means, cuCentroids: cuBlocks(cuSeqlensK, blockSize) });
}

/**
 * The second half of {@link routeBlocks}: routing by centroids that are there already.
 * @param inputs.centroids `[blocks, Hkv, d]`
 * @param inputs.cuCentroids where each sequence's centroids begin
 */
export function routeByCentroids(
  inputs: Omit<RouteInputs, "k"> & { centroids: Float64Array; cuCentroids: CuSeqlens },
): BlockRouting {
  const { q, kvHeads, heads, headDim, blockSize, topK, causal, cuSeqlensK } = inputs;
  const longest = Math.max(0, ...sequenceLengths(cuSeqlensK));
  const mostBlocks = blockCount(longest, blockSize);
  const slots = Math.min(topK, mostBlocks);
  const indices = new Int32Array((q.length / headDim) * slots).fill(-1);
  const scores = new Float64Array(TILE * mostBlocks);
  const rows = new Int32Array(TILE);
  sequences(inputs).forEach((sequence, s) => {
    const n = blockCount(sequence.keys, blockSize);
    for (let head = 0; head < heads; head++) {
      const firstMean = (inputs.cuCentroids[s] * kvHeads + kvHeadOf(inputs, head)) * headDim;
      for (let tile = 0; tile < sequence.queries; tile += TILE) {
        const count = Math.min(TILE, sequence.queries - tile);
        for (let r = 0; r < count; r++) rows[r] = ((sequence.queryBegin + tile + r) * heads + head) * headDim;
        const step = kvHeads * headDim;
        scoreTile(q, rows, count, inputs.centroids, firstMean, step, n, headDim, 1, scores, mostBlocks);
        for (let r = 0; r < count; r++) {
          const own = Math.floor(positionOf(sequence, tile + r) / blockSize);
          if (causal && own < 0) continue;
          const row = scores.subarray(r * mostBlocks, (r + 1) * mostBlocks);
          const chosen = causal
            ? [...selectTop(row, own, Math.min(topK - 1, own)), own]
            : selectTop(row, n, topK);
          indices.set(chosen, (rows[r] / headDim) * slots);
        }
      }
    }
  });
  return { indices, slots, blockSize, causal };
}
