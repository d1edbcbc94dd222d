import { kvHeadOf, type Layout, positionOf, sequences } from "../layout.js";
import type { AttentionInputs, AttentionOutputs } from "../oracle/attention.js";
import type { Gradients } from "../oracle/backward.js";
import { type BackwardInputs, backwardTiles } from "./backward-tile.js";
import { accumulateTile, exponentiate, scoreTile } from "./tile.js";

/** Queries that are computed together. */
const TILE = 16;

/** The keys `begin … end − 1` of its sequence that the query at a position sees. `begin` and `end` never decrease with it. */
export type KeyRange = (position: number, keys: number) => { begin: number; end: number };

/** Queries of one head that are computed together, and the keys that they see. */
interface RangeTile {
  /** Where each query row begins, and their number. */
  readonly rows: Int32Array;
  readonly m: number;
  /** Where the keys of the head begin. */
  readonly firstKey: number;
  /** The keys of each row, counted from `firstKey`. */
  readonly ranges: readonly { begin: number; end: number }[];
  /** The first key that any row sees, and how many keys from there reach the last one. */
  readonly low: number;
  readonly width: number;
}

/** Visits every tile of every sequence and head. The tile is good for the visit only. */
function forEachTile(layout: Layout, range: KeyRange, visit: (tile: RangeTile) => void): void {
  const { heads, kvHeads, headDim: d } = layout;
  const rows = new Int32Array(TILE);
  for (const sequence of sequences(layout)) {
    for (let first = 0; first < sequence.queries; first += TILE) {
      const m = Math.min(TILE, sequence.queries - first);
      const ranges = Array.from({ length: m }, (_, r) =>
        range(positionOf(sequence, first + r), sequence.keys),
      );
      const low = ranges[0].begin;
      const width = Math.max(0, ranges[m - 1].end - low);
      for (let head = 0; head < heads; head++) {
        const firstKey = (sequence.keyBegin * kvHeads + kvHeadOf(layout, head)) * d;
        for (let r = 0; r < m; r++) rows[r] = ((sequence.queryBegin + first + r) * heads + head) * d;
        visit({ rows, m, firstKey, ranges, low, width });
      }
    }
  }
}

/**
 * Visits a tile's keys in parts: those that all its rows see as one, then each row's own edges, so that no row reads a key
 * it must not see.
 */
function forEachPart(
  { rows, m, ranges }: RangeTile,
  visit: (rows: Int32Array, m: number, r: number, begin: number, n: number) => void,
): void {
  const begin = ranges[m - 1].begin;
  const end = Math.max(begin, ranges[0].end);
  if (begin < end) visit(rows, m, 0, begin, end - begin);
  for (let r = 0; r < m; r++) {
    const row = rows.subarray(r, r + 1);
    const leftEnd = Math.min(begin, ranges[r].end);
    if (ranges[r].begin < leftEnd) visit(row, 1, r, ranges[r].begin, leftEnd - ranges[r].begin);
    const rightBegin = Math.max(end, ranges[r].begin);
    if (rightBegin < ranges[r].end) visit(row, 1, r, rightBegin, ranges[r].end - rightBegin);
  }
}

/** Attention of each query over one contiguous range of keys, blocked: what dense and sliding-window attention are. `round` is ignored. */
export function rangeAttention(inputs: AttentionInputs, range: KeyRange): AttentionOutputs {
  const { q, k, v, kvHeads, headDim: d, scale } = inputs;
  const step = kvHeads * d;
  const out = new Float64Array(q.length);
  const lse = new Float64Array(q.length / d).fill(Number.NEGATIVE_INFINITY);
  let scores = new Float64Array(0);
  forEachTile(inputs, range, (tile) => {
    const { rows, m, firstKey, ranges, low, width } = tile;
    if (scores.length < m * width) scores = new Float64Array(m * width);
    forEachPart(tile, (xs, count, r, begin, n) => {
      const target = scores.subarray(r * width + begin - low);
      scoreTile(q, xs, count, k, firstKey + begin * step, step, n, d, scale, target, width);
    });
    for (let r = 0; r < m; r++) {
      const { begin, end } = ranges[r];
      if (begin >= end) continue;
      const from = r * width - low;
      const { max, sum } = exponentiate(scores, from + begin, from + end);
      for (let j = from + begin; j < from + end; j++) scores[j] /= sum;
      lse[rows[r] / d] = max + Math.log(sum);
    }
    forEachPart(tile, (xs, count, r, begin, n) => {
      const weights = scores.subarray(r * width + begin - low);
      accumulateTile(weights, width, v, firstKey + begin * step, step, n, d, 1, out, xs, count);
    });
  });
  return { out, lse };
}

/** Gradients of `rangeAttention`; equations as in `maskedAttentionBackward`. `round` is ignored. */
export function rangeAttentionBackward(inputs: BackwardInputs, range: KeyRange): Gradients {
  const step = inputs.kvHeads * inputs.headDim;
  let widest = 0;
  forEachTile(inputs, range, ({ width }) => {
    widest = Math.max(widest, width);
  });
  const { gradients, tile: addTile } = backwardTiles(inputs, TILE * widest);
  forEachTile(inputs, range, (tile) =>
    forEachPart(tile, (rows, m, _, begin, n) => addTile(rows, m, tile.firstKey + begin * step, n)),
  );
  return gradients;
}

/** The keys of dense attention. */
export const denseRange =
  (causal: boolean): KeyRange =>
  (position, keys) => ({ begin: 0, end: causal ? Math.max(0, position + 1) : keys });

/** The keys of sliding-window attention: `t − w + 1 … t`. */
export const windowRange =
  (window: number): KeyRange =>
  (position) => ({ begin: Math.max(0, position + 1 - window), end: Math.max(0, position + 1) });
