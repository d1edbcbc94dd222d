import type { AttendBackwardProblem, AttentionGradients, CuSeqlens } from "@moba-js/tensor";
import { type Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";
import { PACKED_STEP_BYTES, packedRowBytes } from "../common/packed_rows.js";
import { type BlockLists, invert } from "../route/invert.js";
import { longestSequence, queryRanges, type Ranges } from "../route/ranges.js";
import { type CutLists, cutLists } from "./cut_lists.js";
import { computeRowTerms } from "./row_terms.js";
import { mergeSlots, sumPieces } from "./slot_sums.js";

/**
 * Key blocks in chunks: a block of `B` keys is `chunks` chunks of `keys` keys each, the last one maybe less. A chunk of a
 * sequence has the number `block · chunks + c`; its first key is `block · B + c · keys`, and it has
 * `min(keys, B − c · keys, keys of the sequence − first key)` keys, none where that is not positive.
 */
export interface Chunks {
  /** At most {@link MOST_KEYS}. */
  readonly keys: number;
  readonly chunks: number;
}

/** Keys of a chunk, at most. */
export const MOST_KEYS = 128;

/**
 * Work of one launch: some key heads, and the query heads that read them. All addresses are of device memory.
 *
 * With `s = scale·q·k`, `p = exp(s − lse)`, `D = dOut·out` and `ds = p (dOut·v − D)`, of an entry (query, slot) and the keys of a
 * chunk that the query sees: `dv += p dOut`, `dk += scale ds q`, and the slot's `dq = scale Σ ds k`.
 *
 * **Entries.** As `BlockLists` says: an entry `e` of query head `h` (counted from the first of `lists`) and range `r` is
 * `(token − query_begin) · slots + slot`. Its query is at position `t = first_position + token − query_begin`, and sees the
 * chunk's keys below `min(keys of the chunk, t + 1 − first key)` when causal (maybe none, and that may be negative), else all.
 *
 * **Items.** A segment is a range of queries of one key head, number `kvHead · ranges.count + range`, key heads counted from
 * `firstKvHead`. An item is four int32 `{chunk, begin, rows, piece}`. Its rows are `begin … begin + rows` of the concatenated
 * lists of the chunk's block of the group's query heads in order: head `kvHead · group + g`, `g = 0 … group − 1`, each list
 * `counts[head][ranges.first_block + block]` entries long, from `starts[head][…]` on in its region. `begin` is a multiple of 64
 * rows of the concatenation. An item may have no rows (nobody chose the block), and its chunk no keys.
 *
 * **Gradients of keys.** Every chunk of every visible block has at least one item. Where it has only one, `piece` is −1 and the item
 * alone writes the chunk's rows of `dk` and `dv` (zeros of no rows); otherwise it writes float32 `[2, chunks.keys, d]`, first dk
 * (with its `scale`), then dv, to piece number `piece` of `pieces`, but no rows beyond the chunk's last key; the plan sums
 * the pieces. Where `dk` and `dv` are 0, gradients of keys are not wanted.
 *
 * **Gradients of queries.** Of each of its rows, an item writes `dq` of the slot (zeros where the query sees no key of the
 * chunk) to row `((head · ranges.tokens + query_begin − ranges.firstToken) · slots + entry) · chunks + c` of `partial`, where
 * c is the chunk's number in its block: as `SlotBackwardKernel.packed` says. Where `partial` is 0, gradients of queries are not wanted.
 *
 * **Non-finite elements.** A query that does not see a key must not touch its gradients, nor be touched by it: masked p and ds are
 * selected as 0, and where a tile has masked pairs, elements of q, dOut and k that are not finite must be kept out of its products
 * (0 · NaN is NaN). When a routing is causal, only entries of queries inside the block can be masked; they are among the first of its lists. An
 * element of q or k that is not finite makes ds of all pairs that it touches a NaN, so replacing it by zero there loses nothing;
 * one of dOut must then be added to dv of the keys that its query sees.
 *
 * **Order.** Sums have a fixed order: an item goes through its rows in order; no atomic additions.
 */
export interface BackwardWave {
  /** Of the query heads from `firstKvHead · group` on, `kvHeads · group` of them. Its own items are not to be used. */
  readonly lists: BlockLists;
  readonly firstKvHead: number;
  readonly kvHeads: number;
  readonly chunks: Chunks;
  /** int32 `[segments, mostItems, 4]`. */
  readonly items: number;
  readonly mostItems: number;
  /** int32 `[segments + 1]`: items of the segments before. */
  readonly itemStarts: number;
  readonly segments: number;
  /** float32 `[H, T, 2]`, of all heads and tokens: `lse · log2(e)` and `D`. */
  readonly rowTerms: number;
  /** Rows of `[kvHeads · group, ranges.tokens, slots, chunks]`, or 0. */
  readonly partial: number;
  /** Two bf16 for each row, where they are packed. */
  readonly steps: number;
  /** float32 `[pieces, 2, chunks.keys, d]`. */
  readonly pieces: number;
  /** `[Tk, Hkv, d]` in the dtype of k, of all key heads, or 0. */
  readonly dk: number;
  readonly dv: number;
}

/** A kernel for the plan. */
export interface SlotBackwardKernel {
  /**
   * Whether gradients of slots are packed rows, their steps apart (packed_rows.cuh); else they are `d` elements in the dtype of q, in
   * accumulator order (merge_rows.cuh).
   */
  readonly packed: boolean;
  /** Rows of a work item, at most, when there are so many (query, slot, chunk) rows in all: a multiple of 64. */
  mostRows(rows: number): number;
  /** Enqueues the gradients of a wave: keys' and values' to `dk`, `dv` and pieces, queries' to the partial ones. */
  differentiate(wave: BackwardWave): void;
}

/** Adds what every kernel for the plan takes of a wave, in this order. `ticket`: address of a zero. */
export function addWave(
  args: Arguments,
  { tokens, heads, kvHeads, scale, routing }: AttendBackwardProblem,
  wave: BackwardWave,
  ticket: number,
): Arguments {
  const { lists, chunks } = wave;
  const { ranges } = lists;
  return args
    .pointer(wave.rowTerms)
    .pointer(ranges.table)
    .pointer(lists.counts)
    .pointer(lists.starts)
    .pointer(lists.entries)
    .pointer(wave.items)
    .pointer(wave.itemStarts)
    .pointer(ticket)
    .pointer(wave.partial)
    .pointer(wave.steps)
    .pointer(wave.pieces)
    .pointer(wave.dk)
    .pointer(wave.dv)
    .int(tokens)
    .int(heads)
    .int(heads / kvHeads)
    .int(routing.indices.shape[2])
    .int(chunks.chunks)
    .int(chunks.keys)
    .int(routing.blockSize)
    .int(wave.firstKvHead)
    .int(ranges.firstToken)
    .int(ranges.tokens)
    .int(ranges.count)
    .int(ranges.blocks)
    .int(wave.mostItems)
    .int(wave.segments)
    .int(Number(routing.causal))
    .float(scale);
}

/** Items begin at multiples of these rows: as in cut_lists.cu. */
const ROW_STEP = 64;
/** Shares of the temporary memory: lists and pieces; the rest is for the gradients of slots. */
const [LISTS, PIECES] = [0.2, 0.1];

/** What one wave computes: gradients of keys (of whole sequences), of queries, or of both. */
interface Share {
  /** Query tokens. */
  readonly part: readonly [begin: number, end: number];
  readonly firstKvHead: number;
  readonly kvHeads: number;
  readonly keys: boolean;
  readonly queries: boolean;
}

/** The lists of a share, and how they were cut. */
interface ShareLists extends Disposable {
  readonly lists: BlockLists;
  readonly cut: CutLists;
  readonly mostRows: number;
}

/** Cuts `begin … end` into as few pieces of at most `most` (at least 1) as there can be, of about the same size. */
function* evenly(begin: number, end: number, most: number): Iterable<readonly [begin: number, end: number]> {
  const pieces = ceilDiv(end - begin, Math.max(1, most));
  const cut = (i: number) => begin + Math.floor((i * (end - begin)) / pieces);
  for (let i = 0; i < pieces; i++) yield [cut(i), cut(i + 1)];
}

/** Parts of the tokens: neighbouring sequences that fit together, or one sequence, whether it fits or not. */
function* sequenceParts(
  cuSeqlens: CuSeqlens,
  fits: (tokens: number) => boolean,
): Iterable<readonly [begin: number, end: number]> {
  let begin = 0;
  for (let s = 0; s + 1 < cuSeqlens.length; s++) {
    if (begin < cuSeqlens[s] && !fits(cuSeqlens[s + 1] - begin)) {
      yield [begin, cuSeqlens[s]];
      begin = cuSeqlens[s];
    }
  }
  yield [begin, cuSeqlens[cuSeqlens.length - 1]];
}

/**
 * Cuts the work up so that its temporary memory stays in bounds. Where a key head of a sequence does not fit, gradients of keys,
 * which need no slots, are computed apart from those of queries, of some tokens at a time.
 */
function* shares(
  device: Device,
  { heads, kvHeads, routing, cuSeqlens }: AttendBackwardProblem,
  rowBytes: number,
): Iterable<Share> {
  const entries = routing.indices.shape[2] * (heads / kvHeads); // of a token of a key head
  const listBytes = 2 * 13 * entries; // of two waves: entries, counts for the scatter (no more than entries), work items
  const slotBytes = rowBytes * entries;
  const fitting = (share: number, bytes: number) => Math.floor((share * device.maxWorkspaceBytes) / bytes);
  /** So many key heads of `n` tokens, or tokens of `n` key heads, fit. */
  const most = (n: number) =>
    Math.min(fitting(LISTS, listBytes * n), fitting(1 - LISTS - PIECES, slotBytes * n));
  for (const part of sequenceParts(cuSeqlens, (n) => most(n) > 0)) {
    const [begin, end] = part;
    const queries = most(end - begin) > 0;
    const atOnce = queries ? most(end - begin) : fitting(1 - PIECES, listBytes * (end - begin));
    for (const [firstKvHead, endKvHead] of evenly(0, kvHeads, atOnce)) {
      yield { part, firstKvHead, kvHeads: endKvHead - firstKvHead, keys: true, queries };
    }
    if (queries) continue;
    for (const tokens of evenly(begin, end, most(1))) {
      for (let firstKvHead = 0; firstKvHead < kvHeads; firstKvHead++) {
        yield { part: tokens, firstKvHead, kvHeads: 1, keys: false, queries: true };
      }
    }
  }
}

/**
 * Gradients of routed attention by the slot plan, for routings with slots and elements of 2 bytes: the routing is turned round,
 * each block of keys goes through the queries that chose it, and the gradients of each query's slots are summed, while the next
 * wave's lists are made. dk and dv of keys in no range of queries are left as they are.
 */
export function slotAttendBackward(
  device: Device,
  problem: AttendBackwardProblem,
  gradients: AttentionGradients,
  kernel: SlotBackwardKernel,
): void {
  const { tokens, heads, kvHeads, headDim, routing, cuSeqlensK } = problem;
  const { blockSize, causal } = routing;
  const indices = pointerOf(routing.indices);
  const slots = routing.indices.shape[2];
  const group = heads / kvHeads;
  const blockKeys = Math.min(blockSize, longestSequence(cuSeqlensK));
  const chunkCount = ceilDiv(blockKeys, MOST_KEYS);
  const chunks = { keys: ceilDiv(blockKeys, chunkCount), chunks: chunkCount };
  using terms = device.scratch(8 * tokens * heads);
  computeRowTerms(device, problem, terms.pointer);

  const rowsOf = (share: Share, ranges: Ranges) => ranges.tokens * slots * share.kvHeads * group * chunkCount;
  // A list that is cut gives at most 2 / mostRows pieces a row.
  const pieceBytes = 8 * chunks.keys * headDim;
  const pieceMemory = PIECES * device.maxWorkspaceBytes;
  const listsOf = (share: Share): ShareLists => {
    const ranges = queryRanges(device, problem, { blockSize, causal, most: 2 ** 31 - 1, part: share.part });
    const [firstHead, takenHeads] = [share.firstKvHead * group, share.kvHeads * group];
    const lists = invert(device, { indices, heads, slots, firstHead, takenHeads, mostRows: 2 ** 30 }, ranges);
    const rows = rowsOf(share, ranges);
    const wanted = Math.max(kernel.mostRows(rows), share.keys ? (2 * rows * pieceBytes) / pieceMemory : 0);
    const mostRows = Math.min(2 ** 30, ROW_STEP * ceilDiv(wanted, ROW_STEP));
    const cut = cutLists(device, lists, { slots, group, chunks: chunkCount, mostRows });
    const dispose = () => {
      lists.dispose();
      cut[Symbol.dispose]();
    };
    return { lists, cut, mostRows, [Symbol.dispose]: dispose };
  };

  const rowBytes = kernel.packed ? packedRowBytes(headDim) : 2 * headDim;
  const stepBytes = kernel.packed ? PACKED_STEP_BYTES : 0;
  const waves = [...shares(device, problem, (rowBytes + stepBytes) * chunkCount)];
  let next = listsOf(waves[0]);
  try {
    for (const [i, share] of waves.entries()) {
      using made = next;
      const { lists, cut, mostRows } = made;
      const rows = rowsOf(share, lists.ranges);
      using pieces = device.scratch(share.keys ? pieceBytes * Math.floor((2 * rows) / mostRows) : 0);
      using partial = device.scratch(share.queries ? rowBytes * rows : 0);
      using steps = device.scratch(share.queries ? stepBytes * rows : 0);
      const wave = {
        lists,
        firstKvHead: share.firstKvHead,
        kvHeads: share.kvHeads,
        chunks,
        rowTerms: terms.pointer,
        partial: partial.pointer,
        steps: steps.pointer,
        pieces: pieces.pointer,
        dk: share.keys ? pointerOf(gradients.dk) : 0,
        dv: share.keys ? pointerOf(gradients.dv) : 0,
        ...cut,
      };
      kernel.differentiate(wave);
      const following = waves[i + 1];
      const join = following && device.beside(() => (next = listsOf(following)));
      try {
        if (share.keys) sumPieces(device, problem, { ...wave, pieceRanges: cut.pieceRanges }, gradients);
        if (share.queries) mergeSlots(device, problem, { packed: kernel.packed, ...wave }, gradients);
      } finally {
        join?.();
      }
    }
  } finally {
    next[Symbol.dispose]();
  }
}
