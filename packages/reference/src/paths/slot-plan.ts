import { blockCount } from "@moba-js/tensor";
import { type BlockRouting, kvHeadOf, positionOf, queryRanges, type Sequence, sequences } from "../layout.js";
import type { AttentionInputs, AttentionOutputs } from "../oracle/attention.js";
import type { Gradients } from "../oracle/backward.js";
import { type BackwardInputs, backwardTiles } from "./backward-tile.js";
import { accumulateTile, exponentiate, scoreTile } from "./tile.js";

/*
 * The slot plan: queries are gathered block by block, so that a key block is loaded once for all that chose it, and each
 * (query, slot) has a place of its own for its partial result. Nothing is added to twice, nothing depends on an order.
 */

/** The routing turned round for one sequence and head: for each block, the (query, slot) pairs that chose it. */
export interface BlockLists {
  /** Entries of block `j` are `starts[j] … starts[j+1] − 1`. */
  readonly starts: Int32Array;
  /** `query·slots + slot`, queries counted within the sequence; ascending in each block. */
  readonly entries: Int32Array;
}

/**
 * Inverts a routing: count, exclusive scan, stable scatter. Own blocks of causal queries are left out: they are the
 * merge's work.
 */
export function invertRouting(
  routing: BlockRouting,
  sequence: Sequence,
  heads: number,
  head: number,
): BlockLists {
  const { indices, slots, blockSize, causal } = routing;
  const blocks = blockCount(sequence.keys, blockSize);
  const starts = new Int32Array(blocks + 1);
  const visit = (use: (block: number, entry: number) => void) => {
    for (let i = 0; i < sequence.queries; i++) {
      const own = causal ? Math.floor(positionOf(sequence, i) / blockSize) : -1;
      const row = ((sequence.queryBegin + i) * heads + head) * slots;
      for (let slot = 0; slot < slots; slot++) {
        const block = indices[row + slot];
        if (block >= 0 && block !== own) use(block, i * slots + slot);
      }
    }
  };
  visit((block) => {
    starts[block + 1] += 1;
  });
  for (let j = 0; j < blocks; j++) starts[j + 1] += starts[j];
  const next = starts.slice();
  const entries = new Int32Array(starts[blocks]);
  visit((block, entry) => {
    entries[next[block]++] = entry;
  });
  return { starts, entries };
}

/** Queries of a block's list that are computed together. */
const TILE = 32;

/**
 * Attention over routed blocks by the slot plan (the third forward path): invert, attend block by block into slots, merge
 * the slots of each query with its own block by log-sum-exp. `round` is ignored.
 * @param mostSlotElements float64 elements of slot memory, at most: what needs more runs in waves of queries
 */
export function attendSlots(
  inputs: AttentionInputs & { routing: BlockRouting },
  mostSlotElements = 2 ** 24,
): AttentionOutputs {
  const { q, k, v, heads, kvHeads, headDim: d, scale, routing } = inputs;
  const { slots, blockSize, causal } = routing;
  const step = kvHeads * d;
  const out = new Float64Array(q.length);
  const lse = new Float64Array(q.length / d).fill(Number.NEGATIVE_INFINITY);
  const scores = new Float64Array(TILE * blockSize);
  const queryRows = new Int32Array(TILE);
  const slotRows = new Int32Array(TILE);

  const wave = Math.max(1, Math.floor(mostSlotElements / Math.max(1, slots * d)));
  for (const sequence of sequences(inputs).flatMap((whole) => queryRanges(whole, wave))) {
    // Slot memory is one head's: [queries, slots, d] and [queries, slots].
    const slotOut = new Float64Array(sequence.queries * slots * d);
    const slotLse = new Float64Array(sequence.queries * slots);
    for (let head = 0; head < heads; head++) {
      const firstKey = (sequence.keyBegin * kvHeads + kvHeadOf(inputs, head)) * d;
      const rowOf = (i: number) => (sequence.queryBegin + i) * heads + head;
      slotOut.fill(0);
      slotLse.fill(Number.NEGATIVE_INFINITY);

      // Attend: whole blocks, tiles of the queries that chose them.
      const { starts, entries } = invertRouting(routing, sequence, heads, head);
      for (let j = 0; j + 1 < starts.length; j++) {
        const begin = firstKey + j * blockSize * step;
        const n = Math.min(blockSize, sequence.keys - j * blockSize);
        for (let tile = starts[j]; tile < starts[j + 1]; tile += TILE) {
          const m = Math.min(TILE, starts[j + 1] - tile);
          for (let r = 0; r < m; r++) {
            queryRows[r] = rowOf(Math.floor(entries[tile + r] / slots)) * d;
            slotRows[r] = entries[tile + r] * d;
          }
          scoreTile(q, queryRows, m, k, begin, step, n, d, scale, scores, n);
          for (let r = 0; r < m; r++) {
            const { max, sum } = exponentiate(scores, r * n, (r + 1) * n);
            // Keys that all score −Infinity have no weight beside the row's other blocks.
            if (sum !== 0) for (let c = r * n; c < (r + 1) * n; c++) scores[c] /= sum;
            slotLse[entries[tile + r]] = max + Math.log(sum);
          }
          accumulateTile(scores, n, v, begin, step, n, d, 1, slotOut, slotRows, m);
        }
      }

      // Merge: the own block, causal inside, then the slots in their order.
      for (let i = 0; i < sequence.queries; i++) {
        const row = rowOf(i);
        const position = positionOf(sequence, i);
        const ownBegin = Math.floor(position / blockSize) * blockSize;
        const n = causal && position >= 0 ? position + 1 - ownBegin : 0;
        const begin = firstKey + ownBegin * step;
        queryRows[0] = row * d;
        scoreTile(q, queryRows, 1, k, begin, step, n, d, scale, scores, n);
        const own = exponentiate(scores, 0, n);
        let max = own.max;
        for (let slot = i * slots; slot < (i + 1) * slots; slot++) max = Math.max(max, slotLse[slot]);
        if (max === Number.NEGATIVE_INFINITY && n === 0) continue; // sees no key
        const ownFactor = n > 0 ? Math.exp(own.max - max) : 0;
        let sum = n > 0 ? own.sum * ownFactor : 0;
        if (n > 0) accumulateTile(scores, n, v, begin, step, n, d, ownFactor, out, queryRows, 1);
        for (let slot = i * slots; slot < (i + 1) * slots; slot++) {
          if (slotLse[slot] === Number.NEGATIVE_INFINITY) continue; // unused
          const factor = Math.exp(slotLse[slot] - max);
          sum += factor;
          for (let c = 0; c < d; c++) out[row * d + c] += factor * slotOut[slot * d + c];
        }
        for (let c = 0; c < d; c++) out[row * d + c] /= sum;
        lse[row] = max + Math.log(sum);
      }
    }
  }
  return { out, lse };
}

/**
 * Gradients of {@link attendSlots}, block by block, probabilities recomputed from `lse`; equations as in `maskedAttentionBackward`.
 * `round` is ignored.
 * @param inputs.out result of the forward pass, `[T, H, d]`
 * @param inputs.lse result of the forward pass, `[T, H]`
 * @param inputs.dOut gradient of `out`, `[T, H, d]`
 */
export function attendSlotsBackward(inputs: BackwardInputs & { routing: BlockRouting }): Gradients {
  const { heads, kvHeads, headDim: d, routing } = inputs;
  const { slots, blockSize, causal } = routing;
  const step = kvHeads * d;
  const rows = new Int32Array(TILE);
  const { gradients, tile } = backwardTiles(inputs, TILE * blockSize);
  for (const sequence of sequences(inputs)) {
    for (let head = 0; head < heads; head++) {
      const firstKey = (sequence.keyBegin * kvHeads + kvHeadOf(inputs, head)) * d;
      const rowOf = (i: number) => (sequence.queryBegin + i) * heads + head;
      const { starts, entries } = invertRouting(routing, sequence, heads, head);
      for (let j = 0; j + 1 < starts.length; j++) {
        const n = Math.min(blockSize, sequence.keys - j * blockSize);
        for (let first = starts[j]; first < starts[j + 1]; first += TILE) {
          const m = Math.min(TILE, starts[j + 1] - first);
          for (let r = 0; r < m; r++) rows[r] = rowOf(Math.floor(entries[first + r] / slots)) * d;
          tile(rows, m, firstKey + j * blockSize * step, n);
        }
      }
      for (let i = 0; causal && i < sequence.queries; i++) {
        const position = positionOf(sequence, i);
        if (position < 0) continue;
        const ownBegin = Math.floor(position / blockSize) * blockSize;
        rows[0] = rowOf(i) * d;
        tile(rows, 1, firstKey + ownBegin * step, position + 1 - ownBegin);
      }
    }
  }
  return gradients;
}
