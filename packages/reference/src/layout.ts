import type { CuSeqlens } from "@moba-js/tensor";

/**
 * The packed layout of one attention problem: queries `[T, heads, headDim]`, keys and values `[Tk, kvHeads, headDim]`, all
 * row-major. Query head `h` reads key head `floor(h·kvHeads/heads)`.
 */
export interface Layout {
  /** `H`. */
  readonly heads: number;
  /** `Hkv`, a divisor of `H`. */
  readonly kvHeads: number;
  /** `d`. */
  readonly headDim: number;
  /** Where each sequence's queries begin; last entry `T`. */
  readonly cuSeqlens: CuSeqlens;
  /** Where each sequence's keys begin; last entry `Tk`. */
  readonly cuSeqlensK: CuSeqlens;
}

/** Which blocks each query attends, on the host: see `Routing` of `@moba-js/tensor`. */
export interface BlockRouting {
  /** Block numbers within the sequence, `[T, H, slots]`, −1 where unused. */
  readonly indices: Int32Array;
  readonly slots: number;
  /** `B`. */
  readonly blockSize: number;
  /** Whether a query sees its own block only up to itself. */
  readonly causal: boolean;
}

/** One sequence of a packed batch. */
export interface Sequence {
  /** First query token, and their number `Nq`. */
  readonly queryBegin: number;
  readonly queries: number;
  /** The position of the first query among the keys: queries are aligned to the end, so `Nk − Nq`. */
  readonly firstPosition: number;
  /** First key token, and their number `Nk`. */
  readonly keyBegin: number;
  readonly keys: number;
}

/** The sequences of a packed batch, in order. */
export function sequences({ cuSeqlens, cuSeqlensK }: Pick<Layout, "cuSeqlens" | "cuSeqlensK">): Sequence[] {
  return Array.from(cuSeqlens.subarray(1), (queryEnd, s) => {
    const queries = queryEnd - cuSeqlens[s];
    const keys = cuSeqlensK[s + 1] - cuSeqlensK[s];
    const firstPosition = keys - queries;
    return { queryBegin: cuSeqlens[s], queries, firstPosition, keyBegin: cuSeqlensK[s], keys };
  });
}

/** The position `t` of query `i` among the keys of its sequence. */
export const positionOf = ({ firstPosition }: Sequence, i: number): number => firstPosition + i;

/** A sequence's queries in ranges of at most `most`, each with all keys. */
export function queryRanges(sequence: Sequence, most: number): Sequence[] {
  return Array.from({ length: Math.ceil(sequence.queries / most) }, (_, r) => ({
    ...sequence,
    queryBegin: sequence.queryBegin + r * most,
    queries: Math.min(most, sequence.queries - r * most),
    firstPosition: sequence.firstPosition + r * most,
  }));
}

/** The key head that a query head reads. */
export const kvHeadOf = ({ heads, kvHeads }: Layout, head: number): number =>
  Math.floor((head * kvHeads) / heads);
