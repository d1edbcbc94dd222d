import { blockCount, type CuSeqlens, cuBlocks } from "@moba-js/tensor";
import type { Device } from "../../src/device.js";

/** Pieces of the queries of packed sequences, listed on the device: `Range` of common/range.cuh. */
export interface Ranges {
  /** Device address of the list. */
  readonly table: number;
  /** Ranges in the list. */
  readonly count: number;
  /** Queries of the longest range. */
  readonly longest: number;
  /** Blocks that the queries of a range see, all ranges together. */
  readonly blocks: number;
  /** Blocks that the queries of a range see, at most. */
  readonly mostBlocks: number;
  /** The first query token of the list, and the tokens from there to the end of its last range. */
  readonly firstToken: number;
  readonly tokens: number;
}

/** How to cut sequences into ranges. */
export interface RangeOptions {
  /** `B`. Default: one block a sequence, for kernels that know no blocks. */
  readonly blockSize?: number;
  readonly causal: boolean;
  /** Queries of a range, at most. */
  readonly most: number;
  /** Where each sequence's centroids begin. Default: as `Backend.centroids` lays them out. */
  readonly cuCentroids?: CuSeqlens;
  /** Only the tokens from the first of these up to the second. Default: all. */
  readonly part?: readonly [begin: number, end: number];
}

/** Tokens of the longest sequence; 1 where there are none. */
export const longestSequence = (cuSeqlens: CuSeqlens): number =>
  cuSeqlens.reduce((most, begin, s) => Math.max(most, (cuSeqlens[s + 1] ?? begin) - begin), 1);

/** How many ranges of at most `most` queries there are between these tokens. */
function rangeCount(cuSeqlens: CuSeqlens, from: number, to: number, most: number): number {
  let count = 0;
  for (let s = 0; s + 1 < cuSeqlens.length; s++) {
    const length = Math.min(cuSeqlens[s + 1], to) - Math.max(cuSeqlens[s], from);
    count += Math.ceil(Math.max(0, length) / most);
  }
  return count;
}

/** Lists ranges of queries. A range lies in one sequence, and sees all of that sequence's keys. */
export function queryRanges(
  device: Device,
  { cuSeqlens, cuSeqlensK }: { readonly cuSeqlens: CuSeqlens; readonly cuSeqlensK: CuSeqlens },
  options: RangeOptions,
): Ranges {
  const { blockSize = 2 ** 31 - 1, causal, most } = options;
  const { cuCentroids = cuBlocks(cuSeqlensK, blockSize) } = options;
  const [from, to] = options.part ?? [0, cuSeqlens[cuSeqlens.length - 1]];
  const rows = new Int32Array(8 * rangeCount(cuSeqlens, from, to, most));
  let [blocks, mostBlocks, longest, at] = [0, 0, 0, 0];
  for (let s = 0; s + 1 < cuSeqlens.length; s++) {
    const keys = cuSeqlensK[s + 1] - cuSeqlensK[s];
    const end = Math.min(cuSeqlens[s + 1], to);
    for (let begin = Math.max(cuSeqlens[s], from); begin < end; begin += most) {
      const queries = Math.min(most, end - begin);
      const position = begin - cuSeqlens[s + 1] + keys;
      const seen = causal ? Math.max(0, position + queries) : keys;
      const visible = blockCount(seen, blockSize);
      rows[at++] = begin;
      rows[at++] = queries;
      rows[at++] = cuSeqlensK[s];
      rows[at++] = keys;
      rows[at++] = position;
      rows[at++] = visible;
      rows[at++] = blocks;
      rows[at++] = cuCentroids[s];
      blocks += visible;
      mostBlocks = Math.max(mostBlocks, visible);
      longest = Math.max(longest, queries);
    }
  }
  const table = device.constant(rows);
  const count = rows.length / 8;
  return { table, count, longest, blocks, mostBlocks, firstToken: from, tokens: to - from };
}
