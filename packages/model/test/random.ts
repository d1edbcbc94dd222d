import { Random } from "@moba-js/snr";

/** A fresh seed, printed by the test that uses it. `SEED=n` repeats a run. */
export const freshSeed = (): number => Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));

/** A seeded generator with what the tests draw from it. */
export class TestRandom extends Random {
  /** Uniform integer from `low` to `high`. */
  int(low: number, high: number): number {
    return low + this.integer(high - low + 1);
  }

  pick<T>(items: readonly T[]): T {
    return items[this.integer(items.length)];
  }

  /** Tokens below `vocabulary`. */
  tokens(count: number, vocabulary: number): Int32Array {
    return Int32Array.from({ length: count }, () => this.integer(vocabulary));
  }
}
