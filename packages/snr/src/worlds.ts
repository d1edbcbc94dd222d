import { ArgumentError } from "@moba-js/tensor";
import { checkFinite, checkInteger, checkPositive } from "./check.js";
import { effectiveSeparation } from "./model.js";
import type { Random } from "./random.js";

/** The sizes of a world. */
export interface WorldShape {
  /** `n`, the number of blocks, all of which compete for the slots. */
  readonly blocks: number;
  /** `B`, keys in a block. */
  readonly blockSize: number;
  /** `d`, the head dimension. */
  readonly headDim: number;
}

/**
 * Draws the noise keys of one context, `[blocks · blockSize, headDim]` row-major, isotropic, with products of
 * variance 1/d on average with any unit query. What differs is how keys depend on each other, and their tails.
 */
export type KeyNoise = (random: Random, shape: WorldShape) => Float64Array;

/** One random context: keys, and queries with their signal keys planted among them. */
export interface Scene {
  /** Keys, `[blocks · blockSize, headDim]`, row-major. */
  readonly keys: Float64Array;
  /** Orthonormal queries, `[count, headDim]`, row-major. */
  readonly queries: Float64Array;
  /** The token of each query's signal keys, `[count, needlesPerQuery]`, in different blocks. */
  readonly needles: Int32Array;
}

/** A source of random contexts. */
export interface World extends WorldShape {
  /** How many blocks hold a signal for each query. */
  readonly needlesPerQuery: number;
  /** `Δμ_eff` of a needle with share 1, for the closed form. */
  readonly separation: number;
  /** Draws a fresh context. */
  draw(random: Random): Scene;
}

/** What a world is made of. */
export interface WorldOptions extends WorldShape {
  /** `Δμ`, the lift of the signal key's product with its query. */
  readonly separation: number;
  /** `m`, signal-like keys in the signal block, the signal key included. Default 1. */
  readonly clusterSize?: number;
  /** `μ_cluster − μ_noise`, the lift of each of the other `m − 1`. Default: `separation`. */
  readonly clusterSeparation?: number;
  /** Whether the cluster's keys follow each other (local signal) or are scattered over the block. Default false. */
  readonly adjacent?: boolean;
  /** How noise keys are drawn. Default {@link independentNoise}, the model's own. */
  readonly noise?: KeyNoise;
  /**
   * Makes queries sparse codes: each lights `active` components of its own, all alike in size, all positive or of
   * random sign. For what acts component by component, like the key convolution. Default: dense queries.
   */
  readonly codes?: { readonly active: number; readonly signed: boolean };
  /** For each block that holds a signal for the query, its share of the lift. Default `[1]`: one needle, whole. */
  readonly needleShares?: readonly number[];
}

/**
 * A world of queries, each looking for signal keys planted in a context of noise keys. With the default noise and one
 * needle it is exactly the world of the paper's model (arXiv 2511.11571, section 3): the products of a query with noise
 * keys are independent and N(0, 1/d), with its signal keys N(Δμ, 1/d).
 *
 * The queries of one context are orthonormal, so that what is planted for one leaves the others' products untouched, and
 * with isotropic Gaussian keys their products are independent: each query is an independent trial.
 *
 * @throws ArgumentError if a size is not an integer ≥ 1, a separation is not finite, the cluster does not fit its block,
 *   there are more needles than blocks, or more active components than dimensions.
 */
export function createWorld(options: WorldOptions): World {
  const { blocks, blockSize, headDim, separation, codes } = options;
  const clusterSize = options.clusterSize ?? 1;
  const clusterSeparation = options.clusterSeparation ?? separation;
  const needleShares = options.needleShares ?? [1];
  const noise = options.noise ?? independentNoise;
  checkInteger("blocks", blocks, 1);
  checkInteger("blockSize", blockSize, 1);
  checkInteger("headDim", headDim, 1);
  checkInteger("clusterSize", clusterSize, 1);
  if (clusterSize > blockSize) {
    throw new ArgumentError("clusterSize", clusterSize, `at most blockSize = ${blockSize}`);
  }
  if (needleShares.length < 1 || needleShares.length > blocks) {
    throw new ArgumentError("needleShares", needleShares, `1 to blocks = ${blocks} shares`);
  }
  if (codes) {
    checkInteger("codes.active", codes.active, 1);
    if (codes.active > headDim)
      throw new ArgumentError("codes.active", codes.active, `at most headDim = ${headDim}`);
  }

  const draw = (random: Random): Scene => {
    const keys = noise(random, options);
    const queries = codes ? sparseQueries(random, headDim, codes) : denseQueries(random, headDim);
    const count = queries.length / headDim;
    const needles = new Int32Array(count * needleShares.length);
    for (let query = 0; query < count; query++) {
      const chosen = distinct(random, needleShares.length, blocks);
      needleShares.forEach((share, i) => {
        const places = options.adjacent
          ? run(random, clusterSize, blockSize)
          : distinct(random, clusterSize, blockSize);
        places.forEach((place, j) => {
          const token = chosen[i] * blockSize + place;
          const lift = share * (j === 0 ? separation : clusterSeparation);
          for (let c = 0; c < headDim; c++) keys[token * headDim + c] += lift * queries[query * headDim + c];
          if (j === 0) needles[query * needleShares.length + i] = token;
        });
      });
    }
    return { keys, queries, needles };
  };
  return {
    blocks,
    blockSize,
    headDim,
    needlesPerQuery: needleShares.length,
    separation: effectiveSeparation({ separation, clusterSize, clusterSeparation }),
    draw,
  };
}

/** `count` different integers below `below`, in random order. */
function distinct(random: Random, count: number, below: number): number[] {
  const chosen: number[] = [];
  while (chosen.length < count) {
    const candidate = random.integer(below);
    if (!chosen.includes(candidate)) chosen.push(candidate);
  }
  return chosen;
}

/** `count` consecutive integers that fit below `below`. */
function run(random: Random, count: number, below: number): number[] {
  const first = random.integer(below - count + 1);
  return Array.from({ length: count }, (_, i) => first + i);
}

/**
 * An orthonormal basis of R^d, the reflection I − 2vvᵀ in a random direction v: `[d, d]`. The noise has no preferred
 * direction, so any basis chosen without looking at the keys is as good as another, and this one is cheap.
 */
function denseQueries(random: Random, headDim: number): Float64Array {
  const v = direction(random, headDim);
  const queries = new Float64Array(headDim * headDim);
  for (let i = 0; i < headDim; i++) {
    for (let j = 0; j < headDim; j++) queries[i * headDim + j] = (i === j ? 1 : 0) - 2 * v[i] * v[j];
  }
  return queries;
}

/** As many sparse codes as have room beside each other, each with components of its own: `[⌊d/active⌋, d]`. */
function sparseQueries(
  random: Random,
  headDim: number,
  { active, signed }: { readonly active: number; readonly signed: boolean },
): Float64Array {
  const order = distinct(random, headDim, headDim);
  const queries = new Float64Array(Math.floor(headDim / active) * headDim);
  for (let i = 0; i < queries.length / headDim; i++) {
    for (let j = 0; j < active; j++) {
      // The sign is drawn in either case, so that the same seed gives the same keys.
      const negative = random.uniform() < 0.5;
      queries[i * headDim + order[i * active + j]] = (signed && negative ? -1 : 1) / Math.sqrt(active);
    }
  }
  return queries;
}

/** A uniformly random unit vector. */
function direction(random: Random, headDim: number): Float64Array {
  const v = new Float64Array(headDim).map(() => random.normal());
  const norm = Math.hypot(...v);
  return v.map((x) => x / norm);
}

/** The model's own noise: every component of every key independent, N(0, 1/d). */
export const independentNoise: KeyNoise = (random, { blocks, blockSize, headDim }) => {
  const keys = new Float64Array(blocks * blockSize * headDim);
  const scale = 1 / Math.sqrt(headDim);
  for (let i = 0; i < keys.length; i++) keys[i] = scale * random.normal();
  return keys;
};

/** Scales every key of some noise by a factor drawn for its token and its block; E[factor²] should be 1. */
function scaledNoise(factors: (random: Random, shape: WorldShape) => (token: number) => number): KeyNoise {
  return (random, shape) => {
    const keys = independentNoise(random, shape);
    const factor = factors(random, shape);
    for (let token = 0; token < shape.blocks * shape.blockSize; token++) {
      const scale = factor(token);
      for (let c = 0; c < shape.headDim; c++) keys[token * shape.headDim + c] *= scale;
    }
    return keys;
  };
}

/**
 * Neighbouring keys of a block resemble each other: a first-order autoregression with the given correlation from each
 * key to the next, starting afresh in every block. The variance of a long block's mean grows by `(1 + ρ)/(1 − ρ)`.
 *
 * @throws ArgumentError if `correlation` is not strictly between −1 and 1.
 */
export function correlatedNoise(correlation: number): KeyNoise {
  if (!(Math.abs(correlation) < 1)) {
    throw new ArgumentError("correlation", correlation, "a number strictly between -1 and 1");
  }
  return (random, shape) => {
    const keys = independentNoise(random, shape);
    const fresh = Math.sqrt(1 - correlation ** 2);
    for (let token = 0; token < shape.blocks * shape.blockSize; token++) {
      if (token % shape.blockSize === 0) continue;
      for (let c = token * shape.headDim; c < (token + 1) * shape.headDim; c++) {
        keys[c] = correlation * keys[c - shape.headDim] + fresh * keys[c];
      }
    }
    return keys;
  };
}

/**
 * Every block has a topic: a share of each key's variance is one vector common to its block, which averaging over the
 * block does not reduce. The variance of a block's mean grows by `1 + (B − 1)·share`.
 *
 * @throws ArgumentError if `share` is not in [0, 1].
 */
export function topicNoise(share: number): KeyNoise {
  if (!(share >= 0 && share <= 1)) throw new ArgumentError("share", share, "a number in [0, 1]");
  return (random, shape) => {
    const keys = independentNoise(random, shape);
    const topics = independentNoise(random, { ...shape, blockSize: 1 });
    const { blockSize, headDim } = shape;
    for (let token = 0; token < shape.blocks * blockSize; token++) {
      const topic = Math.floor(token / blockSize) * headDim;
      for (let c = 0; c < headDim; c++) {
        const i = token * headDim + c;
        keys[i] = Math.sqrt(1 - share) * keys[i] + Math.sqrt(share) * topics[topic + c];
      }
    }
    return keys;
  };
}

/**
 * Text-like repetition: every key is the fixed random vector of a word, words drawn by Zipf's law
 * (`p ∝ 1/rank^exponent`); with probability `burstiness` a token instead repeats a random earlier word of its block.
 *
 * @throws ArgumentError if `vocabulary` is not an integer ≥ 1, `exponent` not > 0, or `burstiness` not in [0, 1].
 */
export function repeatedWords({
  vocabulary,
  exponent,
  burstiness,
}: {
  readonly vocabulary: number;
  readonly exponent: number;
  readonly burstiness: number;
}): KeyNoise {
  checkInteger("vocabulary", vocabulary, 1);
  checkPositive("exponent", exponent);
  if (!(burstiness >= 0 && burstiness <= 1)) {
    throw new ArgumentError("burstiness", burstiness, "a number in [0, 1]");
  }
  const cumulative = new Float64Array(vocabulary);
  let mass = 0;
  for (let word = 0; word < vocabulary; word++) {
    mass += (word + 1) ** -exponent;
    cumulative[word] = mass;
  }
  const drawWord = (random: Random) => {
    const target = random.uniform() * mass;
    let low = 0;
    let high = vocabulary - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (cumulative[middle] > target) high = middle;
      else low = middle + 1;
    }
    return low;
  };
  return (random, { blocks, blockSize, headDim }) => {
    const vectors = independentNoise(random, { blocks: vocabulary, blockSize: 1, headDim });
    const keys = new Float64Array(blocks * blockSize * headDim);
    const words = new Int32Array(blocks * blockSize);
    for (let token = 0; token < words.length; token++) {
      const place = token % blockSize;
      const repeats = place > 0 && random.uniform() < burstiness;
      const word = repeats ? words[token - 1 - random.integer(place)] : drawWord(random);
      words[token] = word;
      keys.set(vectors.subarray(word * headDim, (word + 1) * headDim), token * headDim);
    }
    return keys;
  };
}

/**
 * Heavy tails: keys from a multivariate Student t, scaled to variance 1/d, so that every product has t tails.
 *
 * @throws ArgumentError if `degrees` is not an integer ≥ 3 (below that there is no variance).
 */
export function heavyTails(degrees: number): KeyNoise {
  checkInteger("degrees", degrees, 3);
  return scaledNoise((random) => () => {
    let chiSquare = 0;
    for (let i = 0; i < degrees; i++) chiSquare += random.normal() ** 2;
    return Math.sqrt((degrees - 2) / chiSquare);
  });
}

/**
 * All keys share a mean vector of the given length in a random direction.
 *
 * @throws ArgumentError if `length` is not finite.
 */
export function commonMean(length: number): KeyNoise {
  checkFinite("length", length);
  return (random, shape) => {
    const keys = independentNoise(random, shape);
    const mean = direction(random, shape.headDim);
    for (let i = 0; i < keys.length; i++) keys[i] += length * mean[i % shape.headDim];
    return keys;
  };
}

/**
 * Unequal norms: every key, or with `perBlock` every block of keys, is scaled by a log-normal factor of log-deviation
 * `spread` and mean square 1.
 *
 * @throws ArgumentError if `spread` is not > 0.
 */
export function unequalNorms(
  spread: number,
  { perBlock = false }: { readonly perBlock?: boolean } = {},
): KeyNoise {
  checkPositive("spread", spread);
  return scaledNoise((random, { blocks, blockSize }) => {
    const group = perBlock ? blockSize : 1;
    const factors = new Float64Array((blocks * blockSize) / group);
    for (let i = 0; i < factors.length; i++) factors[i] = Math.exp(spread * (random.normal() - spread));
    return (token) => factors[Math.floor(token / group)];
  });
}
