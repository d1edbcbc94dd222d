import { ArgumentError } from "./errors.js";
import { blockCount, type CuSeqlens } from "./packed.js";
import type { Tensor } from "./tensor.js";

/** What a {@link Routing} says besides its indices. */
export interface RoutingInfo {
  /** `B`, tokens a block. */
  readonly blockSize: number;
  /** `k`, the blocks that a query was to choose, its own included. */
  readonly topK: number;
  /** Whether a query sees its own and earlier blocks only. */
  readonly causal: boolean;
  /** Where each sequence's queries begin. */
  readonly cuSeqlens: CuSeqlens;
  /** Where each sequence's keys begin. */
  readonly cuSeqlensK: CuSeqlens;
}

/**
 * Which key blocks each query attends: the result of `Backend.route`, or of `Backend.createRouting` for a pattern of
 * one's own.
 *
 * `indices` is int32 `[T, H, slots]`, `slots = min(k, blocks of the longest sequence)`. A row lists block numbers within
 * the query's sequence; it is a set: the order means nothing, no block occurs twice, unused slots hold −1. Causal rows
 * of queries at `t ≥ 0` contain their own block.
 */
export class Routing implements RoutingInfo {
  readonly blockSize: number;
  readonly topK: number;
  readonly causal: boolean;
  readonly cuSeqlens: CuSeqlens;
  readonly cuSeqlensK: CuSeqlens;

  /** @internal Made by a backend. */
  constructor(
    /** Chosen blocks, int32 `[T, H, slots]`. */
    readonly indices: Tensor<"i32">,
    info: RoutingInfo,
  ) {
    this.blockSize = info.blockSize;
    this.topK = info.topK;
    this.causal = info.causal;
    this.cuSeqlens = info.cuSeqlens;
    this.cuSeqlensK = info.cuSeqlensK;
  }

  /** Gives the memory of the indices back. */
  dispose(): void {
    this.indices.dispose();
  }

  /** `using routing = …` disposes at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Checks the rows of a pattern `[T, H, slots]` against the promises of {@link Routing}.
 * @throws ArgumentError naming the first entry that breaks one.
 */
export function checkRoutingIndices(
  indices: ArrayLike<number>,
  [, heads, slots]: readonly [number, number, number],
  info: RoutingInfo,
): void {
  const { cuSeqlens, cuSeqlensK, blockSize, causal } = info;
  for (let s = 0; s + 1 < cuSeqlens.length; s++) {
    const [begin, end] = [cuSeqlens[s], cuSeqlens[s + 1]];
    const keys = cuSeqlensK[s + 1] - cuSeqlensK[s];
    const blocks = blockCount(keys, blockSize);
    for (let query = begin; query < end; query++) {
      const position = query - begin + keys - (end - begin);
      const own = Math.floor(position / blockSize);
      const last = causal ? own : blocks - 1;
      for (let head = 0; head < heads; head++) {
        const chosen = new Set<number>();
        for (let slot = 0; slot < slots; slot++) {
          const block = indices[(query * heads + head) * slots + slot];
          const at = `indices[${query}, ${head}, ${slot}]`;
          if (block === -1) continue;
          if (!Number.isInteger(block) || block < 0 || block > last) {
            throw new ArgumentError(
              at,
              block,
              last < 0 ? "-1, since no block is visible" : `-1 or a block from 0 to ${last}`,
            );
          }
          if (chosen.has(block)) throw new ArgumentError(at, block, "every block at most once in a row");
          chosen.add(block);
        }
        if (causal && own >= 0 && !chosen.has(own)) {
          throw new ArgumentError(
            `indices[${query}, ${head}]`,
            [...chosen],
            `a row that has the query's own block, ${own}`,
          );
        }
      }
    }
  }
}
