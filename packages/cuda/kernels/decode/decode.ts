import {
  type AttentionResult,
  blockCount,
  bytesPerElement,
  type CopyRowsProblem,
  type CuSeqlens,
  type FloatDType,
  type Tensor,
  type UpdateCentroidsProblem,
} from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv, packetElements, rowSuffix } from "../common/launch.js";
import type { Ranges } from "../route/ranges.js";
import { routeCounters, routeRanges } from "../route/score_route.js";
import { splitAttend } from "./split_attend.js";

/** As in copy_rows.cu, append.cu and advance.cu. */
const [COPY_THREADS, COPY_UNITS, APPEND_THREADS, COLUMNS, ADVANCE_THREADS] = [256, 4, 128, 16, 128];

/** `Backend.copyRows`. */
export function copyRows(device: Device, problem: CopyRowsProblem): void {
  const { target, source, cuSeqlens, offsets } = problem;
  const [, kvHeads, headDim] = source.shape;
  const rowBytes = kvHeads * headDim * bytesPerElement(source.dtype);
  const unitBytes = [16, 4, 2].find((bytes) => rowBytes % bytes === 0) as number;
  const rows: number[] = [];
  let longest = 0;
  offsets.forEach((offset, s) => {
    const count = cuSeqlens[s + 1] - cuSeqlens[s];
    rows.push(cuSeqlens[s], count, offset, 0, 0, 0, 0, 0);
    longest = Math.max(longest, count);
  });
  const rowUnits = rowBytes / unitBytes;
  const tiles = ceilDiv(longest * rowUnits, COPY_THREADS * COPY_UNITS);
  const args = new Arguments()
    .pointer(pointerOf(source))
    .pointer(pointerOf(target))
    .pointer(device.constant(Int32Array.from(rows)))
    .int(rowUnits)
    .int(tiles);
  const kernel = device.kernel("copy_rows", `copy_rows_${unitBytes}`);
  device.launch(kernel, [offsets.length * tiles, 1, 1], COPY_THREADS, 0, args);
}

/** `Backend.updateCentroids`. */
export function updateCentroids(device: Device, problem: UpdateCentroidsProblem): void {
  const { centroids, k, blockSize, cuSeqlens, offsets, cuCentroids } = problem;
  const rooms = { blockSize, cuSeqlens, offsets, cuRows: offsets, cuCentroids };
  launchAppend(device, { k, centroids, blockSize }, newTokens(device, rooms));
}

/** New keys and values for a paged cache, any number for each sequence. */
export interface PagedAppend {
  /** `[T, Hkv, d]` */
  readonly k: Tensor<FloatDType>;
  readonly v: Tensor<FloatDType>;
  /** Where each sequence's new tokens begin. */
  readonly cuSeqlens: CuSeqlens;
  /** The position of each sequence's first new token. */
  readonly offsets: readonly number[];
}

/** Writes new tokens into a paged cache and its centroids. Its `lengths` stay as they are. */
export function appendPaged(device: Device, cache: PagedMemory, problem: PagedAppend): void {
  const { k, v, cuSeqlens, offsets } = problem;
  const { keys, values, centroids, pageTable, pageSize, blockSize } = cache;
  const tables = offsets.map((_, s) => s * pageTable.shape[1]); // where each sequence's pages begin
  const added = newTokens(device, { blockSize, cuSeqlens, offsets, cuRows: tables, cuCentroids: tables });
  if (added.mostBlocks === 0) return;
  const target = { cacheK: keys, cacheV: values, centroids, blockSize };
  launchAppend(device, { k, v, ...target }, added, { table: pointerOf(pageTable), size: pageSize });
}

/** New tokens of each sequence, as ranges, and the most blocks that those of a sequence fall into. */
interface NewTokens {
  readonly table: number;
  readonly count: number;
  readonly mostBlocks: number;
}

/** Tokens to be added to blocks of keys. */
interface Growth {
  readonly blockSize: number;
  readonly cuSeqlens: CuSeqlens;
  readonly offsets: readonly number[];
  /** Where each sequence's rows and centroids begin, or its part of the page table. */
  readonly cuRows: ArrayLike<number>;
  readonly cuCentroids: ArrayLike<number>;
}

function newTokens(device: Device, growth: Growth): NewTokens {
  const { blockSize, cuSeqlens, offsets, cuRows, cuCentroids } = growth;
  let mostBlocks = 0;
  const rows = offsets.flatMap((offset, s) => {
    const count = cuSeqlens[s + 1] - cuSeqlens[s];
    const keys = offset + count;
    if (count > 0)
      mostBlocks = Math.max(mostBlocks, blockCount(keys, blockSize) - Math.floor(offset / blockSize));
    return [cuSeqlens[s], count, cuRows[s], keys, offset, 0, 0, cuCentroids[s]];
  });
  return { table: device.constant(Int32Array.from(rows)), count: offsets.length, mostBlocks };
}

/** New keys, for running block means, and with the caches for them and their values. */
interface NewRows {
  readonly k: Tensor<FloatDType>;
  readonly centroids: Tensor<"f32">;
  readonly blockSize: number;
  readonly v?: Tensor;
  readonly cacheK?: Tensor;
  readonly cacheV?: Tensor;
}

/** Writes new tokens into the caches (where given) and the centroids. */
function launchAppend(
  device: Device,
  problem: NewRows,
  { table, count, mostBlocks }: NewTokens,
  pages: { readonly table: number; readonly size: number } = { table: 0, size: problem.blockSize },
): void {
  const { k, v, cacheK, cacheV, centroids, blockSize } = problem;
  const [, kvHeads, headDim] = k.shape;
  const channels = kvHeads * headDim;
  const address = (tensor: Tensor | undefined) => (tensor ? pointerOf(tensor) : 0);
  const args = new Arguments()
    .pointer(pointerOf(k))
    .pointer(address(v))
    .pointer(address(cacheK))
    .pointer(address(cacheV))
    .pointer(pages.table)
    .int(pages.size)
    .pointer(pointerOf(centroids))
    .int(pages.size / blockSize)
    .pointer(table)
    .int(channels)
    .int(blockSize)
    .int(mostBlocks);
  const grid = [
    count * mostBlocks,
    ceilDiv(channels, COLUMNS * packetElements(k.dtype, channels)),
    1,
  ] as const;
  const kernel = device.kernel("append", `append_${rowSuffix(k.dtype, channels)}`);
  device.launch(kernel, grid, APPEND_THREADS, 0, args);
}

/**
 * The memory of a cache of keys and values in pages. Page `pageTable[s, i]` holds the tokens `i·pageSize …
 * (i+1)·pageSize − 1` of sequence `s`, with the centroids of their blocks. All that a step needs to know is
 * on the device, so that a captured step can be replayed while the sequences grow.
 */
export interface PagedMemory {
  /** `[pages · pageSize, Hkv, d]` */
  readonly keys: Tensor<FloatDType>;
  readonly values: Tensor<FloatDType>;
  /** Running block means, float32 `[pages · pageSize / B, Hkv, d]`. */
  readonly centroids: Tensor<"f32">;
  /** int32 `[sequences, pages of the longest]` */
  readonly pageTable: Tensor<"i32">;
  /** Tokens of each sequence so far, int32 `[sequences]`; −1: the sequence pauses. */
  readonly lengths: Tensor<"i32">;
  /** Tokens of a page, a multiple of `blockSize`. */
  readonly pageSize: number;
  readonly blockSize: number;
}

/** One step of decoding: the same number of new tokens, one or a few, for each sequence. Those of one that pauses mean nothing. */
export interface PagedStep {
  /** `[sequences · added, H, d]` */
  readonly q: Tensor<FloatDType>;
  /** `[sequences · added, Hkv, d]` */
  readonly k: Tensor<FloatDType>;
  readonly v: Tensor<FloatDType>;
  readonly topK: number;
  readonly scale: number;
  /** No sequence is longer than this after the step. */
  readonly mostKeys: number;
}

/**
 * Appends the new tokens to a paged cache (`lengths` grows), then routes and attends: MoBA of each new query
 * over its sequence, from the stored centroids; of a sequence that pauses zeros, and log-sum-exp −Infinity. The page table
 * must have a page for each new token.
 */
export function decodePaged(
  device: Device,
  cache: PagedMemory,
  step: PagedStep,
  outputs: AttentionResult,
): void {
  const { keys, values, centroids, pageSize, blockSize } = cache;
  const { q, k, v, topK, scale, mostKeys } = step;
  const [tokens, heads, headDim] = q.shape;
  const kvHeads = k.shape[1];
  const [sequences, pagesPerSequence] = cache.pageTable.shape;
  const added = tokens / sequences;
  const pageTable = pointerOf(cache.pageTable);
  const mostBlocks = blockCount(mostKeys, blockSize);
  if (tokens === 0) return;

  const slots = Math.min(topK, mostBlocks);
  using table = device.scratch(32 * sequences);
  using indices = device.scratch(4 * tokens * heads * slots);
  const ranges: Ranges = {
    table: table.pointer,
    count: sequences,
    longest: added,
    blocks: sequences * mostBlocks,
    mostBlocks,
    firstToken: 0,
    tokens,
  };
  const routing = {
    dtype: q.dtype,
    q: pointerOf(q),
    centroids: pointerOf(centroids),
    heads,
    kvHeads,
    headDim,
    blockSize,
    causal: true,
    slots,
  };
  const counts = [routeCounters(device, routing, ranges), tokens * heads];
  using counters = device.scratch(4 * (counts[0] + counts[1]));

  const channels = kvHeads * headDim;
  const advance = new Arguments()
    .pointer(pointerOf(k))
    .pointer(pointerOf(v))
    .pointer(pointerOf(keys))
    .pointer(pointerOf(values))
    .pointer(pageTable)
    .int(pageSize)
    .pointer(pointerOf(centroids))
    .int(pageSize / blockSize)
    .pointer(pointerOf(cache.lengths))
    .pointer(table.pointer)
    .pointer(counters.pointer)
    .int(counts[0] + counts[1])
    .int(added)
    .int(channels)
    .int(blockSize)
    .int(pagesPerSequence);
  const kernel = device.kernel("advance", `advance_${rowSuffix(k.dtype, channels)}`);
  device.launch(kernel, [sequences, 1, 1], ADVANCE_THREADS, 0, advance);

  const pages = { table: pageTable, size: pageSize / blockSize };
  routeRanges(device, routing, ranges, pages, counters.pointer, indices.pointer);
  splitAttend(
    device,
    { dtype: q.dtype, tokens, heads, kvHeads, headDim, scale, mostKeys },
    { q: pointerOf(q), k: pointerOf(keys), v: pointerOf(values), pageTable, pageSize },
    { indices: indices.pointer, slots, blockSize, causal: true },
    ranges,
    counters.pointer + 4 * counts[0],
    outputs,
  );
}
