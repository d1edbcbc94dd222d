import type { AttendProblem, AttentionResult } from "@moba-js/tensor";
import { type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";
import { packedNoteBytes, packedRowBytes } from "../common/packed_rows.js";
import { type BlockLists, invert } from "../route/invert.js";
import { longestSequence, queryRanges } from "../route/ranges.js";
import { merge, type Suspects } from "./merge.js";
import { mergePacked } from "./merge_packed.js";

/** Heads of some block lists, and room for the partial outputs of their slots. */
export interface AttendWave {
  readonly lists: BlockLists;
  /** The head that the lists begin with. */
  readonly firstHead: number;
  /** The heads to attend, counted from that one. */
  readonly begin: number;
  readonly end: number;
  /** Addresses of a row and of a note for each of `[heads, tokens, slots]`: {@link SlotKernel.packed} says what they are. */
  readonly partial: number;
  readonly notes: number;
  /** Address of a zero. */
  readonly ticket: number;
}

/** A kernel for the second of the plan's three steps. */
export interface SlotKernel {
  /**
   * Whether partial outputs are packed rows and `PackedNote`s (packed_rows.cuh); else they are `d` elements in the dtype of q, in
   * accumulator order (merge_rows.cuh), and their lse, float32, base 2.
   */
  readonly packed: boolean;
  /** Rows of a work item, at most, of so many (query, slot) pairs in all: a multiple of 64. */
  mostRows(pairs: number): number;
  /** Queries of a range, at most, where the longest sequence has so many. Default: all. */
  mostQueries?(longest: number): number;
  /** Enqueues the attention of a wave to its partial outputs. */
  attend(wave: AttendWave): void;
  /** Enqueues what is to follow the merges, which have listed their suspects. Packed rows need it. */
  repair?(ranges: BlockLists["ranges"], suspects: Suspects): void;
}

/** Bytes of a wave's ticket, and of the count of suspects. */
const COUNTER_BYTES = 4;
/** Share of the temporary memory that is for lists; the rest is for partial outputs. */
const LISTS = 0.25;

/** How an attention is cut up so that its temporary memory stays in bounds. */
interface Plan {
  /** Query tokens of a part; each part is turned round and attended by itself. */
  readonly tokens: number;
  /** Heads whose lists are made at once. */
  readonly listHeads: number;
  /** Heads that are attended and merged at once. */
  readonly heads: number;
}

function planWaves(device: Device, { tokens, heads, routing }: AttendProblem, slotBytes: number): Plan {
  const slots = routing.indices.shape[2];
  const listBytes = 13 * slots; // of a query of one head: entries, counts for the scatter (no more than entries), work items
  const partialBytes = slotBytes * slots;
  const fitting = (share: number, bytes: number) => Math.floor((share * device.maxWorkspaceBytes) / bytes);
  const most = Math.min(fitting(LISTS, listBytes), fitting(1 - LISTS, partialBytes), 2 ** 31 / slots - 1);
  const part = ceilDiv(tokens, ceilDiv(tokens, Math.max(1, Math.floor(most))));
  const within = (fit: number, count: number) => Math.max(1, Math.min(fit, count));
  const listHeads = within(fitting(LISTS, listBytes * part), heads);
  return { tokens: part, listHeads, heads: within(fitting(1 - LISTS, partialBytes * part), listHeads) };
}

/** Cuts `0 … count` into as few pieces of at most `most` as there can be, of about the same size. */
function* evenly(count: number, most: number): Iterable<readonly [begin: number, end: number]> {
  const pieces = ceilDiv(count, most);
  for (let i = 0; i < pieces; i++) {
    yield [Math.floor((i * count) / pieces), Math.floor(((i + 1) * count) / pieces)];
  }
}

/**
 * Routed attention by the slot plan, for routings with slots: the routing is turned round, the queries that chose a block attend to it,
 * and the partial outputs of each query are merged.
 */
export function slotAttend(
  device: Device,
  problem: AttendProblem,
  outputs: AttentionResult,
  kernel: SlotKernel,
): void {
  const { tokens, heads, headDim, routing, cuSeqlens } = problem;
  const { blockSize, causal } = routing;
  const slots = routing.indices.shape[2];
  const indices = pointerOf(routing.indices);
  const rowBytes = kernel.packed ? packedRowBytes(headDim) : 2 * headDim;
  const noteBytes = kernel.packed ? packedNoteBytes(headDim) : 4;
  const plan = planWaves(device, problem, rowBytes + noteBytes);
  const longest = longestSequence(cuSeqlens);
  const most = Math.min(plan.tokens, kernel.mostQueries?.(longest) ?? longest);
  for (const part of evenly(tokens, plan.tokens)) {
    const ranges = queryRanges(device, problem, { blockSize, causal, most, part });
    const groups = [...evenly(heads, plan.listHeads)].map(([firstHead, endHead]) => ({
      firstHead,
      takenHeads: endHead - firstHead,
      waves: [...evenly(endHead - firstHead, plan.heads)],
    }));
    const counters = 1 + groups.reduce((sum, { waves }) => sum + waves.length, 0);
    using zeros = device.scratch(COUNTER_BYTES * counters);
    device.fill(zeros.pointer, COUNTER_BYTES * counters, 0);
    using listed = device.scratch(kernel.repair ? 4 * heads * ranges.tokens : 0);
    const suspects = { count: zeros.pointer, rows: listed.pointer };
    let ticket = zeros.pointer;
    for (const { firstHead, takenHeads, waves } of groups) {
      const mostRows = kernel.mostRows(ranges.tokens * takenHeads * slots);
      using lists = invert(device, { indices, heads, slots, firstHead, takenHeads, mostRows }, ranges);
      for (const [begin, end] of waves) {
        const rows = (end - begin) * ranges.tokens;
        using partial = device.scratch(rowBytes * slots * rows);
        using notes = device.scratch(noteBytes * slots * rows);
        const addresses = { partial: partial.pointer, notes: notes.pointer };
        ticket += COUNTER_BYTES;
        kernel.attend({ lists, firstHead, begin, end, ticket, ...addresses });
        const merged = {
          ...addresses,
          firstHead: firstHead + begin,
          rows,
          ...(kernel.repair && { suspects }),
        };
        (kernel.packed ? mergePacked : merge)(device, problem, { ...ranges, ...merged }, outputs);
      }
    }
    kernel.repair?.(ranges, suspects);
  }
}
