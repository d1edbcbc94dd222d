import type { AttentionProblem, AttentionResult, CuSeqlens } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv, NO_WINDOW, rowSuffix, SLAB } from "../common/launch.js";
import { queryRanges, type Ranges } from "../route/ranges.js";

/** Sequences with at most so many queries are decoded: each row's keys are split over several CTAs. */
const FEW_QUERIES = 16;
/** Keys of a piece, at least, and a multiple of it: what the warps of a CTA take at once. */
const KEYS_AT_ONCE = 64;
/** CTAs that a multiprocessor holds at once. */
const CTAS_AT_ONCE = 3;
/** Pieces of long spans, several times as many: then they occupy the device evenly. */
const CTAS_PER_MULTIPROCESSOR = 16;
/** Where there are more than twice as many pieces a multiprocessor, a piece is several slots: beginning and ending one takes time. */
const MANY_PIECES = 24;
/** As in split_attend.cu: of a CTA, slots of a piece at most, and columns of a row that the kernel for narrow ones takes. */
const [THREADS, MOST_SLOTS, NARROW] = [128, 32, 64];

/** The keys that a query sees. */
export type Sight =
  /** Those of routed blocks: address of int32 `[T, H, slots]`. */
  | { readonly indices: number; readonly slots: number; readonly blockSize: number; readonly causal: boolean }
  /** Those at `t − window + 1 … t`, or all. */
  | { readonly window: number; readonly causal: boolean };

/** Device addresses of queries, keys and values, and of the page table (0 where keys lie in a row). */
export interface SplitInputs {
  readonly q: number;
  readonly k: number;
  readonly v: number;
  readonly pageTable: number;
  readonly pageSize: number;
}

/** How rows are cut. */
interface Pieces {
  readonly count: number;
  /** Of routed blocks: slots of a piece, all of their keys if there is more than one. */
  readonly slots: number;
  readonly keys: number;
}

/** Pieces of each row's keys: small enough to occupy the device, not smaller than a CTA takes at once. */
function piecesOf(device: Device, rows: number, mostKeys: number, sight: Sight): Pieces {
  const routed = "indices" in sight;
  const spans = routed ? sight.slots : 1;
  const spanKeys = Math.min(routed ? sight.blockSize : sight.window, mostKeys);
  const together = Math.min(MOST_SLOTS, Math.floor((rows * spans) / (MANY_PIECES * device.multiprocessors)));
  if (routed && together > 1) {
    const count = ceilDiv(spans, together);
    return { count, slots: ceilDiv(spans, count), keys: spanKeys };
  }
  // A block is so short that a second wave of CTAs, if one is enough, would take as long again.
  const oneWave = Math.floor((CTAS_AT_ONCE * device.multiprocessors) / (rows * spans));
  const manyWaves = ceilDiv(CTAS_PER_MULTIPROCESSOR * device.multiprocessors, rows * spans);
  const wanted = routed && oneWave > 0 ? oneWave : manyWaves;
  const keys = KEYS_AT_ONCE * Math.max(1, ceilDiv(spanKeys, KEYS_AT_ONCE * wanted));
  const parts = Math.max(1, ceilDiv(spanKeys, keys));
  return { count: spans * parts, slots: 1, keys };
}

const longestOf = (cuSeqlens: CuSeqlens): number =>
  cuSeqlens.reduce((most, end, s) => Math.max(most, s > 0 ? end - cuSeqlens[s - 1] : 0), 0);

/** Temporary memory that {@link splitAttend} needs. */
const workspaceBytes = (rows: number, pieces: number, headDim: number): number =>
  4 * rows * pieces * (headDim + 1);

/**
 * Attention of packed sequences with few queries each, if that is what they are and the workspace has room
 * for the pieces.
 * @returns whether it was
 */
export function attendFew(
  device: Device,
  problem: AttentionProblem,
  sight: Sight,
  outputs: AttentionResult,
): boolean {
  const { q, k, v, tokens, heads, headDim, cuSeqlens, cuSeqlensK } = problem;
  const longest = longestOf(cuSeqlens);
  if (longest > FEW_QUERIES) return false;
  const mostKeys = longestOf(cuSeqlensK);
  const { count } = piecesOf(device, tokens * heads, mostKeys, sight);
  if (workspaceBytes(tokens * heads, count, headDim) > device.maxWorkspaceBytes) return false;
  const inputs = { q: pointerOf(q), k: pointerOf(k), v: pointerOf(v), pageTable: 0, pageSize: 1 };
  const ranges = queryRanges(device, problem, { causal: sight.causal, most: FEW_QUERIES });
  using counters = device.scratch(4 * tokens * heads);
  device.fill(counters.pointer, counters.byteLength, 0);
  splitAttend(device, { ...problem, mostKeys }, inputs, sight, ranges, counters.pointer, outputs);
  return true;
}

/** Attention in pieces, then the pieces merged. `counters`: address of int32 `[tokens, H]`, zero before. */
export function splitAttend(
  device: Device,
  problem: Pick<AttentionProblem, "dtype" | "tokens" | "heads" | "kvHeads" | "headDim" | "scale"> & {
    /** Keys of a sequence, at most. */
    readonly mostKeys: number;
  },
  inputs: SplitInputs,
  sight: Sight,
  ranges: Ranges,
  counters: number,
  { out, lse }: AttentionResult,
): void {
  const { dtype, tokens, heads, kvHeads, headDim, scale, mostKeys } = problem;
  const rows = tokens * heads;
  if (rows === 0) return;
  const routed = "indices" in sight;
  const pieces = piecesOf(device, rows, mostKeys, sight);
  using pieceOut = device.scratch(4 * rows * pieces.count * headDim);
  using pieceLse = device.scratch(4 * rows * pieces.count);

  const args = new Arguments()
    .pointer(inputs.q)
    .pointer(inputs.k)
    .pointer(inputs.v)
    .pointer(inputs.pageTable)
    .int(inputs.pageSize)
    .pointer(routed ? sight.indices : 0)
    .pointer(ranges.table)
    .pointer(pieceOut.pointer)
    .pointer(pieceLse.pointer)
    .pointer(counters)
    .pointer(pointerOf(out))
    .pointer(pointerOf(lse))
    .int(heads)
    .int(kvHeads)
    .int(headDim)
    .int(routed ? sight.blockSize : 1)
    .int(routed ? sight.slots : 1)
    .int(Number(sight.causal))
    .int(routed ? NO_WINDOW : Math.min(sight.window, NO_WINDOW))
    .float(scale)
    .int(ranges.longest)
    .int(pieces.count)
    .int(pieces.slots)
    .int(pieces.keys);
  const grid = [
    ranges.count * ranges.longest * pieces.count * (heads / kvHeads),
    kvHeads,
    ceilDiv(headDim, SLAB),
  ] as const;
  const packets = rowSuffix(dtype, headDim);
  const suffix = packets === dtype && headDim <= NARROW ? `${dtype}_narrow` : packets;
  device.launch(device.kernel("split_attend", `split_attend_${suffix}`), grid, THREADS, 4 * headDim, args);
}
