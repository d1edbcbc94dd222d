import { cuSeqlensFromLengths } from "@moba-js/tensor";

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

/** What a problem is drawn from; whatever is missing is drawn at random. */
export interface Choice {
  lengths?: number[];
  keyLengths?: number[];
  kvHeads?: number;
  group?: number;
  headDim?: number;
  causal?: boolean;
  blockSize?: number;
  topK?: number;
}

/** The shapes that most often break an implementation. */
export const EDGE_CASES: Record<string, Choice> = {
  "nothing fixed": {},
  "empty sequences": { lengths: [0, 13, 0] },
  "an empty batch": { lengths: [] },
  "N < B": { lengths: [7], keyLengths: [7], blockSize: 100 },
  "a short last block": { lengths: [41], keyLengths: [41], blockSize: 16 },
  "k ≥ n": { topK: 1000 },
  "Nq < Nk": { lengths: [7, 1], keyLengths: [41, 30], causal: true },
  "Nq > Nk": { lengths: [41], keyLengths: [7], causal: true },
  "G > 1": { kvHeads: 2, group: 3 },
  "B = 1": { blockSize: 1 },
  "B = 24": { blockSize: 24, lengths: [49] },
  "d = 1": { headDim: 1 },
  "not causal": { causal: false },
};

/** A random attention problem: sequences of odd lengths, some empty, cross lengths, grouped heads. */
export function randomInputs(random: Random, choice: Choice = {}, longest = 80) {
  const kvHeads = choice.kvHeads ?? random.int(1, 2);
  const heads = kvHeads * (choice.group ?? random.int(1, 3));
  const headDim = choice.headDim ?? random.pick([1, 2, 3, 8, 16]);
  const length = () => Math.min(longest, random.pick([0, 1, 5, 7, 30, 41, 49, 64, 80]));
  const lengths = choice.lengths ?? Array.from({ length: random.int(1, 3) }, length);
  const keyLengths = choice.keyLengths ?? lengths.map((same) => (random.next() < 0.5 ? same : length()));
  const cuSeqlens = cuSeqlensFromLengths(lengths);
  const cuSeqlensK = cuSeqlensFromLengths(keyLengths);
  const keySize = cuSeqlensK[keyLengths.length] * kvHeads * headDim;
  return {
    q: random.gaussians(cuSeqlens[lengths.length] * heads * headDim),
    k: random.gaussians(keySize),
    v: random.gaussians(keySize),
    heads,
    kvHeads,
    headDim,
    cuSeqlens,
    cuSeqlensK,
    scale: random.pick([1 / Math.sqrt(headDim), 0.3]),
    causal: choice.causal ?? random.next() < 0.7,
    blockSize: choice.blockSize ?? random.pick([1, 8, 16, 24, 100]),
    topK: choice.topK ?? random.pick([1, 2, 3, 8, 1000]),
  };
}

/** `max |x − y|`; 0 where both are the same infinity. */
export function maxDifference(x: Float64Array, y: Float64Array): number {
  if (x.length !== y.length) return Number.POSITIVE_INFINITY;
  return x.reduce((worst, a, i) => (a === y[i] ? worst : Math.max(worst, Math.abs(a - y[i]))), 0);
}
