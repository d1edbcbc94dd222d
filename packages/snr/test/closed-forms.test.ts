import { readFileSync } from "node:fs";
import { ArgumentError } from "@moba-js/tensor";
import { describe, expect, test } from "vitest";
import {
  binomialInterval,
  blockSizeForRecall,
  effectiveSeparation,
  headDimForRecall,
  hitProbability,
  logNormalCdf,
  meetsTopKCondition,
  missProbability,
  normalCdf,
  normalQuantile,
  pairwiseFailure,
  requiredSnr,
  separationForRecall,
  slotsForRecall,
  snr,
  snrForRecall,
} from "../src/index.js";

/** mpmath's values, see reference-values.py. */
const reference: {
  cdf: [number, string, string][];
  quantile: [string, string][];
  hit: [number, number, number, string, string][];
} = JSON.parse(readFileSync(new URL("./reference-values.json", import.meta.url), "utf8"));

/** A small seeded generator for the random cases of this file. */
function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

const relativeError = (value: number, exact: number) => Math.abs(value / exact - 1);

describe("the normal distribution against mpmath", () => {
  test.each(reference.cdf)("Φ(%f)", (x, cdf, logCdf) => {
    // Rounding x²/2 alone costs x²/2 ulps.
    expect(relativeError(normalCdf(x), Number(cdf))).toBeLessThan(1e-14 + (x * x) / 2 ** 53);
    expect(relativeError(logNormalCdf(x), Number(logCdf))).toBeLessThan(2e-14);
  });

  test.each(reference.quantile)("Φ⁻¹(%s)", (p, x) => {
    expect(Math.abs(normalQuantile(Number(p)) - Number(x))).toBeLessThan(
      1e-14 * Math.max(1, Math.abs(Number(x))),
    );
  });

  test("far tails and ends", () => {
    expect(normalCdf(-Infinity)).toBe(0);
    expect(normalCdf(Infinity)).toBe(1);
    expect(logNormalCdf(-1e6)).toBeCloseTo(-5e11 - Math.log(1e6 * Math.sqrt(2 * Math.PI)), 3);
    expect(normalQuantile(0)).toBe(-Infinity);
    expect(normalQuantile(0.5)).toBe(0);
    expect(normalQuantile(1)).toBe(Infinity);
    expect(() => normalQuantile(1.5)).toThrow(ArgumentError);
  });
});

describe("the paper's closed forms", () => {
  test("SNR = Δμ_eff √(d / 2B)", () => {
    expect(snr({ headDim: 128, blockSize: 64, separation: 1.5 })).toBe(1.5);
    expect(snr({ headDim: 64, blockSize: 512, separation: 2 })).toBeCloseTo(0.5, 15);
    expect(() => snr({ headDim: 0, blockSize: 64, separation: 1 })).toThrow(/headDim.*> 0.*0/);
    expect(() => snr({ headDim: 64, blockSize: 64, separation: Number.NaN })).toThrow(ArgumentError);
  });

  test("Δμ_eff = Δμ + (m − 1)(μ_cluster − μ_noise)", () => {
    expect(effectiveSeparation({ separation: 0.8, clusterSize: 4, clusterSeparation: 0.5 })).toBeCloseTo(
      2.3,
      15,
    );
    expect(effectiveSeparation({ separation: 0.8, clusterSize: 1, clusterSeparation: 9 })).toBe(0.8);
    const tooSmall = { separation: 0.8, clusterSize: 0, clusterSeparation: 0.5 };
    expect(() => effectiveSeparation(tooSmall)).toThrow(ArgumentError);
  });

  test("the top-k condition is SNR > Φ⁻¹(1 − k/n)", () => {
    const threshold = requiredSnr({ blocks: 512, topK: 8 });
    expect(pairwiseFailure(threshold)).toBeCloseTo(8 / 512, 14);
    expect(meetsTopKCondition({ snr: threshold + 1e-9, blocks: 512, topK: 8 })).toBe(true);
    expect(meetsTopKCondition({ snr: threshold, blocks: 512, topK: 8 })).toBe(false);
    expect(meetsTopKCondition({ snr: -50, blocks: 8, topK: 8 })).toBe(true);
    expect(() => requiredSnr({ blocks: 0, topK: 1 })).toThrow(ArgumentError);
  });
});

describe("P(hit)", () => {
  test.each(reference.hit)("SNR %f, n' = %i, k' = %i, against mpmath", (s, competitors, slots, hit, miss) => {
    const options = { snr: s, competitors, slots };
    expect(relativeError(hitProbability(options), Number(hit))).toBeLessThan(1e-11);
    expect(relativeError(missProbability(options), Number(miss))).toBeLessThan(1e-11);
  });

  /** E_z of the binomial sum, added up term by term. */
  function bruteForce(s: number, competitors: number, slots: number): number {
    const step = 1 / 256;
    let total = 0;
    for (let z = -10; z <= 10; z += step) {
      const exceed = normalCdf(-(Math.SQRT2 * s + z));
      const stay = normalCdf(Math.SQRT2 * s + z);
      let term = stay ** competitors;
      let below = 0;
      for (let count = 0; count < slots; count++) {
        below += term;
        term *= ((competitors - count) / (count + 1)) * (exceed / stay);
      }
      total += below * Math.exp((-z * z) / 2);
    }
    return (total * step) / Math.sqrt(2 * Math.PI);
  }

  test("equals the brute-force binomial sum at 200 random settings", () => {
    const seed = Date.now() % 2 ** 32;
    const uniform = random(seed);
    for (let i = 0; i < 200; i++) {
      const competitors = 1 + Math.floor(uniform() * 30);
      const slots = Math.floor(uniform() * (competitors + 1));
      const s = uniform() * 6 - 1;
      const error = hitProbability({ snr: s, competitors, slots }) - bruteForce(s, competitors, slots);
      expect(Math.abs(error), `seed ${seed}: SNR ${s}, n' ${competitors}, k' ${slots}`).toBeLessThan(1e-10);
    }
  });

  test("one competitor is the pairwise case, down to the smallest probabilities", () => {
    for (const s of [0, 1, 5, 12, 30]) {
      const miss = missProbability({ snr: s, competitors: 1, slots: 1 });
      expect(relativeError(miss, pairwiseFailure(s))).toBeLessThan(1e-11);
    }
  });

  test("no signal means chance, and hit and miss add up to one", () => {
    for (const [competitors, slots] of [
      [7, 3],
      [1_000_000, 1000],
      [512, 512],
    ] as const) {
      const chance = hitProbability({ snr: 0, competitors, slots });
      expect(relativeError(chance, slots / (competitors + 1))).toBeLessThan(1e-10);
      const options = { snr: 1.7, competitors, slots };
      expect(hitProbability(options) + missProbability(options)).toBeCloseTo(1, 11);
    }
  });

  test("edge cases", () => {
    expect(hitProbability({ snr: 5, competitors: 10, slots: 0 })).toBe(0);
    expect(missProbability({ snr: 5, competitors: 10, slots: 0 })).toBe(1);
    expect(hitProbability({ snr: -5, competitors: 10, slots: 11 })).toBe(1);
    expect(hitProbability({ snr: -5, competitors: 0, slots: 1 })).toBe(1);
    expect(hitProbability({ snr: Infinity, competitors: 10, slots: 1 })).toBe(1);
    expect(missProbability({ snr: 1e300, competitors: 10, slots: 1 })).toBe(0);
    expect(hitProbability({ snr: -Infinity, competitors: 10, slots: 10 })).toBe(0);
    expect(() => hitProbability({ snr: Number.NaN, competitors: 10, slots: 1 })).toThrow(ArgumentError);
    expect(() => hitProbability({ snr: 1, competitors: -1, slots: 1 })).toThrow(/competitors/);
    expect(() => hitProbability({ snr: 1, competitors: 10, slots: 1.5 })).toThrow(/slots/);
  });
});

describe("inverses", () => {
  const seed = Date.now() % 2 ** 32;
  const uniform = random(seed);
  const targets = Array.from({ length: 25 }, () => {
    const competitors = Math.floor(10 ** (0.5 + uniform() * 4.5));
    const slots = 1 + Math.floor(uniform() ** 3 * Math.min(competitors / 4, 200));
    const chance = slots / (competitors + 1);
    const recall = chance + (1 - chance) * (0.02 + 0.979 * uniform());
    return { recall, competitors, slots };
  });

  test.each(targets)(`plug back to within 1e-6 (seed ${seed}): %o`, (target) => {
    const { recall, competitors, slots } = target;
    const recallAt = (value: number) => hitProbability({ snr: value, competitors, slots });

    const needed = snrForRecall(target);
    expect(Math.abs(recallAt(needed) - recall)).toBeLessThan(1e-6);

    const separation = separationForRecall({ ...target, headDim: 96, blockSize: 48 });
    expect(Math.abs(recallAt(snr({ headDim: 96, blockSize: 48, separation })) - recall)).toBeLessThan(1e-6);

    const blockSize = blockSizeForRecall({ ...target, headDim: 128, separation: 4 });
    expect(Math.abs(recallAt(snr({ headDim: 128, blockSize, separation: 4 })) - recall)).toBeLessThan(1e-6);

    const headDim = headDimForRecall({ ...target, blockSize: 64, separation: 2 });
    expect(Math.abs(recallAt(snr({ headDim, blockSize: 64, separation: 2 })) - recall)).toBeLessThan(1e-6);

    const fewest = slotsForRecall({ recall, competitors, snr: 1 });
    expect(hitProbability({ snr: 1, competitors, slots: fewest })).toBeGreaterThanOrEqual(recall - 1e-12);
    expect(hitProbability({ snr: 1, competitors, slots: fewest - 1 })).toBeLessThan(recall);
  });

  test("recalls a hair below one keep their accuracy", () => {
    const target = { recall: 1 - 2 ** -40, competitors: 1000, slots: 4 };
    const miss = missProbability({ ...target, snr: snrForRecall(target) });
    expect(relativeError(miss, 2 ** -40)).toBeLessThan(1e-6);
  });

  test("impossible targets say what would make them possible", () => {
    const target = { recall: 0.99, competitors: 100, slots: 1 };
    const refusal = (() => {
      try {
        return blockSizeForRecall({ ...target, headDim: 64, separation: 0.1 });
      } catch (error) {
        return error;
      }
    })();
    expect(refusal).toBeInstanceOf(ArgumentError);
    const message = (refusal as ArgumentError).message;
    const [, separation, headDim, slots] =
      message.match(/separation >= ([\d.]+), or headDim >= ([\d.]+), or slots >= (\d+)/)?.map(Number) ?? [];
    expect(message).toContain("recall");
    // Each of the ways it names is indeed one.
    const nudge = 1 + 1e-9;
    expect(blockSizeForRecall({ ...target, headDim: 64, separation: separation! * nudge })).toBeCloseTo(1, 6);
    expect(blockSizeForRecall({ ...target, headDim: headDim! * nudge, separation: 0.1 })).toBeCloseTo(1, 6);
    expect(
      blockSizeForRecall({ ...target, slots: slots!, headDim: 64, separation: 0.1 }),
    ).toBeGreaterThanOrEqual(1);

    expect(() => snrForRecall({ ...target, recall: 1 })).toThrow(/strictly between 0 and 1/);
    expect(() => snrForRecall({ ...target, slots: 0 })).toThrow(/at least 1/);
    expect(() => snrForRecall({ ...target, slots: 101 })).toThrow(/competitors = 100/);
    expect(() => headDimForRecall({ ...target, blockSize: 64, separation: -1 })).toThrow(
      /without separation/,
    );
    expect(() => headDimForRecall({ ...target, recall: 0.005, blockSize: 64, separation: 1 })).toThrow(
      /chance/,
    );
  });
});

describe("binomialInterval", () => {
  /** P(X ≤ count) from log-factorials. */
  function cumulative(count: number, trials: number, p: number): number {
    const logFactorial = [0];
    for (let i = 1; i <= trials; i++) logFactorial.push(logFactorial[i - 1] + Math.log(i));
    let sum = 0;
    for (let i = 0; i <= count; i++) {
      const logChoose = logFactorial[trials] - logFactorial[i] - logFactorial[trials - i];
      sum += Math.exp(logChoose + i * Math.log(p) + (trials - i) * Math.log1p(-p));
    }
    return sum;
  }

  test("is the exact central interval", () => {
    const seed = Date.now() % 2 ** 32;
    const uniform = random(seed);
    for (let i = 0; i < 100; i++) {
      const trials = 1 + Math.floor(uniform() * 400);
      const probability = uniform();
      const level = 0.5 + uniform() * 0.499;
      const { low, high } = binomialInterval({ trials, probability, level });
      const tail = (1 - level) / 2;
      const context = `seed ${seed}: ${trials} trials, p ${probability}, level ${level}`;
      expect(cumulative(low, trials, probability), context).toBeGreaterThanOrEqual(tail - 1e-12);
      expect(low > 0 ? cumulative(low - 1, trials, probability) : 0, context).toBeLessThan(tail);
      expect(cumulative(high, trials, probability), context).toBeGreaterThanOrEqual(1 - tail - 1e-12);
      expect(high > 0 ? cumulative(high - 1, trials, probability) : 0, context).toBeLessThan(1 - tail);
    }
  });

  test("certain outcomes, many trials, bad input", () => {
    expect(binomialInterval({ trials: 10, probability: 0, level: 0.99 })).toEqual({ low: 0, high: 0 });
    expect(binomialInterval({ trials: 10, probability: 1, level: 0.99 })).toEqual({ low: 10, high: 10 });
    const { low, high } = binomialInterval({ trials: 1e7, probability: 0.25, level: 0.99 });
    const halfWidth = 2.5758 * Math.sqrt(1e7 * 0.25 * 0.75);
    expect(Math.abs(low - (2.5e6 - halfWidth))).toBeLessThan(3);
    expect(Math.abs(high - (2.5e6 + halfWidth))).toBeLessThan(3);
    expect(() => binomialInterval({ trials: 0, probability: 0.5, level: 0.99 })).toThrow(/trials/);
    expect(() => binomialInterval({ trials: 5, probability: 0.5, level: 1 })).toThrow(/level/);
  });
});
