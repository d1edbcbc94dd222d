import { ArgumentError } from "@moba-js/tensor";
import { describe, expect, test } from "vitest";
import {
  commonMean,
  correlatedNoise,
  createWorld,
  heavyTails,
  independentNoise,
  type KeyNoise,
  predict,
  Random,
  repeatedWords,
  simulate,
  simulateStream,
  topicNoise,
  unequalNorms,
} from "../src/index.js";

const seed = Date.now() % 2 ** 31;

/** The mean square of a component of the keys and of their block means, both times d. */
function moments(noise: KeyNoise): { key: number; blockMean: number } {
  const shape = { blocks: 64, blockSize: 32, headDim: 32 };
  const random = new Random(seed);
  const contexts = 30;
  let key = 0;
  let blockMean = 0;
  for (let context = 0; context < contexts; context++) {
    const keys = noise(random, shape);
    const sums = new Float64Array(shape.blocks * shape.headDim);
    keys.forEach((x, i) => {
      key += (x * x) / shape.blocks / shape.blockSize / contexts;
      sums[Math.floor(i / (shape.blockSize * shape.headDim)) * shape.headDim + (i % shape.headDim)] += x;
    });
    for (const sum of sums) blockMean += (sum / shape.blockSize) ** 2 / shape.blocks / contexts;
  }
  return { key, blockMean };
}

describe("noise has variance 1/d, and block means the variance that its doc comment states", () => {
  const rho = 0.5;
  const autoregressive =
    (32 + 2 * Array.from({ length: 31 }, (_, l) => (31 - l) * rho ** (l + 1)).reduce((a, b) => a + b)) /
    32 ** 2;
  test.each([
    ["independent", independentNoise, 1, 1 / 32],
    ["correlated", correlatedNoise(rho), 1, autoregressive],
    ["topic", topicNoise(0.1), 1, 0.1 + 0.9 / 32],
    ["heavy tails", heavyTails(5), 1, 1 / 32],
    ["common mean", commonMean(2), 1 + 4, 1 / 32 + 4],
    ["unequal norms", unequalNorms(0.5), 1, 1 / 32],
    ["loud blocks", unequalNorms(0.5, { perBlock: true }), 1, 1 / 32],
  ] as const)("%s", (_, noise, key, blockMean) => {
    const measured = moments(noise);
    expect(Math.abs(measured.key / key - 1), `seed ${seed}`).toBeLessThan(0.12);
    expect(Math.abs(measured.blockMean / blockMean - 1), `seed ${seed}`).toBeLessThan(0.12);
  });

  test("words repeat by Zipf's law, and in bursts", () => {
    const shape = { blocks: 1, blockSize: 4096, headDim: 1 };
    const shares = (burstiness: number) => {
      const keys = repeatedWords({ vocabulary: 100, exponent: 1, burstiness })(new Random(seed), shape);
      const counts = new Map<number, number>();
      for (const key of keys) counts.set(key, (counts.get(key) ?? 0) + 1);
      return [...counts.values()].sort((a, b) => b - a).map((count) => count / keys.length);
    };
    const harmonic = Array.from({ length: 100 }, (_, i) => 1 / (i + 1)).reduce((a, b) => a + b);
    const plain = shares(0);
    expect(Math.abs(plain[0] - 1 / harmonic), `seed ${seed}`).toBeLessThan(0.03);
    expect(Math.abs(plain[9] - 0.1 / harmonic), `seed ${seed}`).toBeLessThan(0.01);
    expect(plain.length).toBeLessThanOrEqual(100);
    expect(shares(0.95).length, `seed ${seed}`).toBeLessThan(plain.length);
  });
});

describe("worlds", () => {
  test("queries are orthonormal, needles lie where they are said to", () => {
    for (const codes of [undefined, { active: 4, signed: true }, { active: 4, signed: false }]) {
      const world = createWorld({
        blocks: 5,
        blockSize: 8,
        headDim: 16,
        separation: 1000,
        clusterSize: 3,
        adjacent: true,
        needleShares: [1, 0.5],
        ...(codes ? { codes } : {}),
      });
      const { keys, queries, needles } = world.draw(new Random(seed));
      const count = queries.length / 16;
      expect(count).toBe(codes ? 4 : 16);
      const dot = (a: Float64Array, i: number, b: Float64Array, j: number) =>
        Array.from({ length: 16 }, (_, c) => a[i * 16 + c] * b[j * 16 + c]).reduce((x, y) => x + y);
      for (let i = 0; i < count; i++) {
        for (let j = 0; j < count; j++) expect(dot(queries, i, queries, j)).toBeCloseTo(i === j ? 1 : 0, 12);
        const products = Array.from({ length: 40 }, (_, token) => dot(queries, i, keys, token));
        const [first, second] = needles.subarray(2 * i, 2 * i + 2);
        expect(Math.floor(first / 8)).not.toBe(Math.floor(second / 8));
        for (let offset = 0; offset < 3; offset++) {
          expect(Math.abs(products[first + offset] - 1000), `seed ${seed}`).toBeLessThan(3);
          expect(Math.abs(products[second + offset] - 500), `seed ${seed}`).toBeLessThan(3);
        }
        expect(products.filter((product) => product > 100)).toHaveLength(6);
      }
      if (codes && !codes.signed) expect(Math.min(...queries)).toBe(0);
      if (codes?.signed) expect(Math.min(...queries)).toBe(-0.5);
    }
  });

  test("refuse what cannot be", () => {
    const shape = { blocks: 4, blockSize: 8, headDim: 16, separation: 1 };
    expect(() => createWorld({ ...shape, blocks: 0 })).toThrow(/blocks/);
    expect(() => createWorld({ ...shape, clusterSize: 9 })).toThrow(/blockSize = 8/);
    expect(() => createWorld({ ...shape, separation: Number.NaN })).toThrow(ArgumentError);
    expect(() => createWorld({ ...shape, needleShares: [1, 1, 1, 1, 1] })).toThrow(/blocks = 4/);
    expect(() => createWorld({ ...shape, codes: { active: 17, signed: true } })).toThrow(/headDim = 16/);
    expect(() => correlatedNoise(1)).toThrow(/correlation/);
    expect(() => topicNoise(2)).toThrow(/share/);
    expect(() => heavyTails(2)).toThrow(/degrees/);
    expect(() => unequalNorms(0)).toThrow(/spread/);
    expect(() => repeatedWords({ vocabulary: 0, exponent: 1, burstiness: 0 })).toThrow(/vocabulary/);
  });
});

describe("simulation", () => {
  const world = createWorld({ blocks: 16, blockSize: 16, headDim: 16, separation: 1.2 });

  test("is a function of its seed", () => {
    const run = (seed: number) => simulate(world, { slots: 2, trials: 500, seed });
    expect(run(3)).toEqual(run(3));
    expect(run(4)).not.toEqual(run(3));
  });

  test("streams: the running result is that of a run of its length", () => {
    const stream = simulateStream(world, { slots: 2, seed: 9 });
    let result = stream.next().value;
    expect(result.trials).toBe(16);
    expect(result.recall.standardError).toBeNaN();
    while (result.trials < 1600) result = stream.next().value;
    expect(result).toEqual(simulate(world, { slots: 2, trials: 1600, seed: 9 }));
  });

  test("its standard errors are those of independent trials, where trials are independent", () => {
    const runs = Array.from({ length: 40 }, (_, i) =>
      simulate(world, { slots: 2, trials: 640, seed: seed + i }),
    );
    const { recall, snr } = predict(world, 2);
    const meanError = runs.reduce((sum, run) => sum + run.recall.standardError, 0) / runs.length;
    expect(meanError / Math.sqrt((recall * (1 - recall)) / 640), `seed ${seed}`).toBeGreaterThan(0.85);
    expect(meanError / Math.sqrt((recall * (1 - recall)) / 640), `seed ${seed}`).toBeLessThan(1.15);
    // The empirical SNR and its error too: deviations from the truth have mean square 1.
    const chiSquare = runs.reduce(
      (sum, run) => sum + ((run.empiricalSnr.value - snr) / run.empiricalSnr.standardError) ** 2,
      0,
    );
    expect(chiSquare, `seed ${seed}`).toBeGreaterThan(15);
    expect(chiSquare, `seed ${seed}`).toBeLessThan(95);
  });

  test("counts several needles apart: any, all and their mean", () => {
    const three = createWorld({
      blocks: 16,
      blockSize: 16,
      headDim: 16,
      separation: 2,
      needleShares: [1, 1, 1],
    });
    const one = simulate(three, { slots: 1, trials: 500, seed });
    // One slot holds one block: the mean over three needles is a third of any, and never are all found.
    expect(one.recall.value).toBeCloseTo(one.any.value / 3, 12);
    expect(one.all.value).toBe(0);
    const all = simulate(three, { slots: 16, trials: 100, seed });
    expect(all.all.value).toBe(1);
  });

  test("refuses bad options", () => {
    expect(() => simulate(world, { slots: -1, trials: 10, seed: 1 })).toThrow(/slots/);
    expect(() => simulate(world, { slots: 1, trials: 0, seed: 1 })).toThrow(/trials/);
    expect(() => simulate(world, { slots: 1, trials: 10, seed: 0.5 })).toThrow(/seed/);
  });
});
