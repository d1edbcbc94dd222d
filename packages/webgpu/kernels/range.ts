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

/** The first key that a query at a position sees. */
export function firstKeyOf(mask: Mask, position: number): number {
  if (mask.kind === "window") return Math.max(0, position + 1 - mask.span);
  if (mask.kind === "ownBlock") return Math.floor(Math.max(0, position) / mask.span) * mask.span;
  return 0;
}

/** The key after the last one that it sees, of so many. */
export function lastKeyOf(mask: Mask, keys: number, position: number): number {
  if (mask.kind === "all") return keys;
  return mask.kind === "nothing" ? 0 : Math.max(0, position + 1);
}

/**
 * The rows (query, query head of the group) of a sequence that see any of keys `firstKey … endKey − 1`.
 * @param sequence its queries and keys, and `G`
 */
export function rowsThatSee(
  mask: Mask,
  { queries, keys, group }: { readonly queries: number; readonly keys: number; readonly group: number },
  firstKey: number,
  endKey: number,
): { first: number; end: number } {
  const offset = keys - queries; // the position of the first query
  const first = mask.kind === "all" ? 0 : Math.max(0, firstKey - offset);
  const end = mask.kind === "window" ? Math.min(queries, endKey - 1 + mask.span - offset) : queries;
  return { first: group * first, end: group * Math.max(0, end) };
}

/** What a causal query sees of its own block, in place; otherwise every block is in the lists. */
export const ownMask = ({
  causal,
  blockSize,
}: {
  readonly causal: boolean;
  readonly blockSize: number;
}): Mask => (causal ? { kind: "ownBlock", span: blockSize } : { kind: "nothing" });

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

/** How sequences are packed. */
export type Packing = Pick<PackedProblem, "cuSeqlens" | "cuSeqlensK">;

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

/** Keys `first … end − 1` of the batch in pieces. */
export interface KeyCut {
  readonly first: number;
  readonly end: number;
  readonly piece: number;
  readonly firstSlot: number;
}

/**
 * Cuts the queries of a wave into tiles, those that see most keys first.
 * @param group `G`: a tile's rows are (query, query head of the group) pairs
 * @param cut only these keys, in pieces of so many; the first piece of each sequence goes into slot `firstSlot`
 */
export function planRange(
  problem: Packing & { readonly blockSize?: number; readonly cuCentroids?: Int32Array },
  group: number,
  { BQ }: Tile,
  wave: Pick<Wave, "firstToken" | "tokens">,
  cut?: KeyCut,
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
      if (!cut) {
        items.push(s, firstRow, endRow, 0, 0, keys, 0, 0);
        continue;
      }
      const lastKey = Math.min(keys, cut.end - cuSeqlensK[s]);
      let slot = cut.firstSlot;
      for (let key = Math.max(0, cut.first - cuSeqlensK[s]); key < lastKey; key += cut.piece) {
        items.push(s, firstRow, endRow, 0, key, Math.min(lastKey, key + cut.piece), slot, 0);
        slot += 1;
      }
    }
  }
  return {
    plan: Uint32Array.from([...table, ...items]),
    firstItem: table.length / 4,
    items: items.length / 8,
  };
}
