import { cuSeqlensFromLengths } from "@moba-js/tensor";
import type { AttentionInputs, BlockRouting } from "../src/index.js";

/** A seeded generator (mulberry32) with what the tests draw from it. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** Uniform in [0, 1). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** Uniform integer from `low` to `high`. */
  int(low: number, high: number): number {
    return low + Math.floor(this.next() * (high - low + 1));
  }

  pick<T>(items: readonly T[]): T {
    return items[this.int(0, items.length - 1)];
  }

  /** Standard normal values. */
  gaussians(count: number): Float64Array {
    return Float64Array.from(
      { length: count },
      () => Math.sqrt(-2 * Math.log(1 - this.next())) * Math.cos(2 * Math.PI * this.next()),
    );
  }
}

/** A fresh seed, printed by the test that uses it. `SEED=n` repeats a run. */
export const freshSeed = (): number => Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));

/** Random attention inputs: one to three sequences, some empty, cross lengths, grouped heads, odd sizes. */
export function randomInputs(
  random: Random,
): AttentionInputs & { causal: boolean; blockSize: number; topK: number } {
  const kvHeads = random.int(1, 2);
  const heads = kvHeads * random.int(1, 3);
  const headDim = random.pick([1, 2, 3, 8, 16]);
  const lengths = Array.from({ length: random.int(1, 3) }, () => random.pick([0, 1, 7, 30, 49, 64]));
  const keyLengths = lengths.map((length) => (random.next() < 0.5 ? length : random.pick([0, 5, 41, 80])));
  const cuSeqlens = cuSeqlensFromLengths(lengths);
  const cuSeqlensK = cuSeqlensFromLengths(keyLengths);
  const tokens = cuSeqlens[lengths.length];
  const keyTokens = cuSeqlensK[lengths.length];
  return {
    q: random.gaussians(tokens * heads * headDim),
    k: random.gaussians(keyTokens * kvHeads * headDim),
    v: random.gaussians(keyTokens * kvHeads * headDim),
    heads,
    kvHeads,
    headDim,
    cuSeqlens,
    cuSeqlensK,
    scale: random.pick([1 / Math.sqrt(headDim), 0.3]),
    causal: random.next() < 0.7,
    blockSize: random.pick([1, 8, 16, 24, 100]),
    topK: random.pick([1, 2, 3, 8, 1000]),
  };
}

/** `max |x − y|`; 0 where both are the same infinity. */
export function maxDifference(x: Float64Array, y: Float64Array): number {
  if (x.length !== y.length) return Number.POSITIVE_INFINITY;
  return x.reduce((worst, a, i) => (a === y[i] ? worst : Math.max(worst, Math.abs(a - y[i]))), 0);
}

export type RoutedInputs = AttentionInputs & { routing: BlockRouting };
