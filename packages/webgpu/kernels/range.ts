import { cuBlocks, type PackedProblem } from "@moba-js/tensor";
import type { Tile } from "./tile.js";

/** Which keys a query sees: the constants of `range.wgsl`. */
export type Mask =
  | { readonly kind: "all" | "causal" | "nothing" }
  /** The last `span` keys up to the query's position. */
  | { readonly kind: "window"; readonly span: number }
  /** The keys of the query's own block of `span` keys, up to its position. */
  | { readonly kind: "ownBlock"; readonly span: number };

/** The mask's number in WGSL. */
export const maskNumber = ({ kind }: Mask): number =>
  ["all", "causal", "window", "ownBlock", "nothing"].indexOf(kind);

/** The mask's span in WGSL; 1 where there is none. */
export const maskSpan = (mask: Mask): number => ("span" in mask ? mask.span : 1);

/** A part of an attention problem: some key heads with their query heads, and some query tokens. */
export interface Wave {
  readonly firstHead: number;
  readonly headCount: number;
  readonly firstToken: number;
  readonly tokens: number;
}

/** The whole problem as one wave. */
export const wholeWave = ({ kvHeads, tokens }: Pick<PackedProblem, "kvHeads" | "tokens">): Wave => ({
  firstHead: 0,
  headCount: kvHeads,
  firstToken: 0,
  tokens,
});

type Packing = Pick<PackedProblem, "cuSeqlens" | "cuSeqlensK">;

/** The sequences of a plan: (first query token, queries, first key token, keys, first block, blocks, 0, 0) each. */
export function sequenceTable({ cuSeqlens, cuSeqlensK }: Packing, cuCentroids: Int32Array): number[] {
  return Array.from(cuSeqlens.subarray(1), (end, s) => {
    const queries = end - cuSeqlens[s];
    const keys = cuSeqlensK[s + 1] - cuSeqlensK[s];
    const blocks = cuCentroids[s + 1] - cuCentroids[s];
    return [cuSeqlens[s], queries, cuSeqlensK[s], keys, cuCentroids[s], blocks, 0, 0];
  }).flat();
}

/** A plan for kernels that work at tiles of queries. */
export interface RangePlan {
  readonly plan: Uint32Array;
  /** Where the items begin, in groups of four. */
  readonly firstItem: number;
  readonly items: number;
}

/**
 * Cuts the queries of a wave into tiles, those that see most keys first.
 * @param group `G`: a tile's rows are (query, query head of the group) pairs
 * @param splitKeys cut each tile's keys into pieces of so many
 */
export function planRange(
  problem: Packing & { readonly blockSize?: number; readonly cuCentroids?: Int32Array },
  group: number,
  { BQ }: Tile,
  wave: Pick<Wave, "firstToken" | "tokens">,
  splitKeys = Number.POSITIVE_INFINITY,
): RangePlan {
  const { cuSeqlens, cuSeqlensK, blockSize = 1 } = problem;
  const table = sequenceTable(problem, problem.cuCentroids ?? cuBlocks(cuSeqlensK, blockSize));
  const items: number[] = [];
  for (let s = 0; s + 1 < cuSeqlens.length; s++) {
    const keys = cuSeqlensK[s + 1] - cuSeqlensK[s];
    const begin = Math.max(cuSeqlens[s], wave.firstToken) - cuSeqlens[s];
    const end = Math.min(cuSeqlens[s + 1], wave.firstToken + wave.tokens) - cuSeqlens[s];
    const tiles = Math.ceil(Math.max(0, (end - begin) * group) / BQ);
    for (let tile = tiles - 1; tile >= 0; tile--) {
      const firstRow = begin * group + tile * BQ;
      const endRow = Math.min(firstRow + BQ, end * group);
      const pieces = Math.max(1, Math.ceil(keys / splitKeys));
      for (let piece = 0; piece < pieces; piece++) {
        const firstKey = pieces === 1 ? 0 : piece * splitKeys;
        const endKey = pieces === 1 ? keys : Math.min(keys, firstKey + splitKeys);
        items.push(s, firstRow, endRow, 0, firstKey, endKey, piece, 0);
      }
    }
  }
  return {
    plan: Uint32Array.from([...table, ...items]),
    firstItem: table.length / 4,
    items: items.length / 8,
  };
}
