import { gaussians, generator } from "./random.js";

/** The dot product of two vectors of one length. */
export function dot(x: Float32Array, y: Float32Array): number {
  let sum = 0;
  for (let c = 0; c < x.length; c++) sum += x[c] * y[c];
  return sum;
}

/** The vector scaled to length 1. */
function normalize(x: Float32Array): Float32Array {
  const length = Math.sqrt(dot(x, x));
  return x.map((value) => value / length);
}

/**
 * A fixed random unit vector for every word: Gaussian, from a hash of the word and the seed, so that words have nothing in
 * common but themselves: `q·k` of two words has mean 0 and variance `1/d`.
 */
export class Directions {
  readonly #vectors = new Map<string, Float32Array>();

  constructor(
    readonly seed: number,
    readonly headDim: number,
  ) {}

  /** The direction of a word, `[d]`. */
  of(word: string): Float32Array {
    let vector = this.#vectors.get(word);
    if (vector === undefined) {
      vector = normalize(gaussians(generator("direction", this.seed, word), this.headDim));
      this.#vectors.set(word, vector);
    }
    return vector;
  }

  /** The sum of words' directions, each times a weight, scaled to length 1. */
  sum(words: readonly string[], weight: (word: string) => number = () => 1): Float32Array {
    const sum = new Float32Array(this.headDim);
    for (const word of words) {
      const direction = this.of(word);
      for (let c = 0; c < sum.length; c++) sum[c] += weight(word) * direction[c];
    }
    return normalize(sum);
  }

  /** The directions of a row of words, `[words, d]`. */
  rows(words: readonly string[]): Float32Array {
    const rows = new Float32Array(words.length * this.headDim);
    words.forEach((word, i) => {
      rows.set(this.of(word), i * this.headDim);
    });
    return rows;
  }
}
