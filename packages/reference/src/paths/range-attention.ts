import { kvHeadOf, positionOf, sequences } from "../layout.js";
import type { AttentionInputs, AttentionOutputs } from "../oracle/attention.js";
import { accumulateTile, exponentiate, scoreTile } from "./tile.js";

/** Queries that are computed together. */
const TILE = 16;

/** The keys `begin … end − 1` of its sequence that the query at a position sees. `begin` and `end` never decrease with it. */
export type KeyRange = (position: number, keys: number) => { begin: number; end: number };

/**
 * Attention of each query over one contiguous range of keys, blocked: what dense and sliding-window attention are. The
 * keys that all queries of a tile see are computed as a tile; the ragged edges, row by row, so that no row reads a key it
 * must not see. `round` is ignored.
 */
export function rangeAttention(inputs: AttentionInputs, range: KeyRange): AttentionOutputs {
  const { q, k, v, heads, kvHeads, headDim: d, scale } = inputs;
  const step = kvHeads * d;
  const out = new Float64Array(q.length);
  const lse = new Float64Array(q.length / d).fill(Number.NEGATIVE_INFINITY);
  const rows = new Int32Array(TILE);
  const row = new Int32Array(1);
  for (const sequence of sequences(inputs)) {
    for (let tile = 0; tile < sequence.queries; tile += TILE) {
      const m = Math.min(TILE, sequence.queries - tile);
      const ranges = Array.from({ length: m }, (_, r) =>
        range(positionOf(sequence, tile + r), sequence.keys),
      );
      const low = ranges[0].begin;
      const width = Math.max(0, ranges[m - 1].end - low);
      const common = { begin: ranges[m - 1].begin, end: Math.max(ranges[m - 1].begin, ranges[0].end) };
      const scores = new Float64Array(m * width);
      for (let head = 0; head < heads; head++) {
        const firstKey = (sequence.keyBegin * kvHeads + kvHeadOf(inputs, head)) * d;
        for (let r = 0; r < m; r++) rows[r] = ((sequence.queryBegin + tile + r) * heads + head) * d;
        /** Runs `use` over the tile's common keys, then over each row's own edges. */
        const parts = (use: (rows: Int32Array, m: number, r: number, begin: number, n: number) => void) => {
          use(rows, m, 0, common.begin, common.end - common.begin);
          for (let r = 0; r < m; r++) {
            row[0] = rows[r];
            const { begin, end } = ranges[r];
            const leftEnd = Math.min(common.begin, end);
            if (begin < leftEnd) use(row, 1, r, begin, leftEnd - begin);
            const rightBegin = Math.max(common.end, begin);
            if (rightBegin < end) use(row, 1, r, rightBegin, end - rightBegin);
          }
        };
        parts((xs, count, r, begin, n) => {
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
        parts((xs, count, r, begin, n) => {
          const weights = scores.subarray(r * width + begin - low);
          accumulateTile(weights, width, v, firstKey + begin * step, step, n, d, 1, out, xs, count);
        });
      }
    }
  }
  return { out, lse };
}

/** The keys of dense attention. */
export const denseRange =
  (causal: boolean): KeyRange =>
  (position, keys) => ({ begin: 0, end: causal ? Math.max(0, position + 1) : keys });

/** The keys of sliding-window attention: `t − w + 1 … t`. */
export const windowRange =
  (window: number): KeyRange =>
  (position) => ({ begin: Math.max(0, position + 1 - window), end: Math.max(0, position + 1) });
