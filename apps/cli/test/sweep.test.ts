import { ReferenceBackend } from "@moba-js/reference";
import { binomialInterval, hitProbability } from "@moba-js/snr";
import { leakCheck } from "@moba-js/tensor";
import { describe, expect, it } from "vitest";
import { Directions } from "../src/directions.js";
import { buildHaystack } from "../src/haystack.js";
import { hitProbabilityOf, modelSnr, textVariances } from "../src/prediction.js";
import { gaussians, generator, integer, uniform } from "../src/random.js";
import { type Cell, explain, measureCell, type SweepOptions, settingsOf } from "../src/sweep.js";
import { freshSeed } from "./support.js";

const backend = new ReferenceBackend();
const seed = freshSeed();

/** A text as the model supposes: words that are independent of each other, of a vocabulary so large that few recur. */
const independentText = (words: number): string[] => {
  const random = generator("independent text", seed);
  return Array.from({ length: words }, () => `word${integer(random, 200_000)}`);
};

/** A text of clusters: each word is repeated in a row. */
const clusteredText = (words: number, repeats: number): string[] =>
  Array.from({ length: words }, (_, i) => `word${Math.floor(i / repeats)}`);

const options: SweepOptions = { seed, topK: 4, needles: 200, tokens: 8192 };
const sweep = async (text: readonly string[], headDim: number, grid: Parameters<typeof settingsOf>[0]) => {
  const directions = new Directions(seed, headDim);
  const cells: Cell[] = [];
  for (const setting of settingsOf(grid)) {
    cells.push(await measureCell(backend, text, directions, setting, options));
  }
  return cells;
};

describe("random directions", () => {
  it("are unit vectors, fixed for a word and a seed, with products of mean 0 and variance 1/d", () => {
    const directions = new Directions(seed, 48);
    const rows = Array.from({ length: 400 }, (_, i) => directions.of(`word${i}`));
    for (const row of rows) expect(Math.hypot(...row)).toBeCloseTo(1, 5);
    expect(new Directions(seed, 48).of("word7")).toEqual(rows[7]);
    expect(new Directions(seed + 1, 48).of("word7")).not.toEqual(rows[7]);
    const products = rows.flatMap((x, i) =>
      rows.slice(0, i).map((y) => x.reduce((sum, a, c) => sum + a * y[c], 0)),
    );
    const mean = products.reduce((sum, p) => sum + p) / products.length;
    const variance = products.reduce((sum, p) => sum + p * p, 0) / products.length;
    expect(Math.abs(mean)).toBeLessThan(5 / Math.sqrt(48 * products.length));
    expect(variance * 48).toBeGreaterThan(0.97);
    expect(variance * 48).toBeLessThan(1.03);
  });

  it("come from Gaussian and uniform streams with the right moments", () => {
    const random = generator("moments", seed);
    const values = gaussians(random, 100_001);
    const moment = (power: number) => values.reduce((sum, x) => sum + x ** power, 0) / values.length;
    expect(Math.abs(moment(1))).toBeLessThan(0.02);
    expect(Math.abs(moment(2) - 1)).toBeLessThan(0.03);
    expect(Math.abs(moment(4) - 3)).toBeLessThan(0.2);
    const uniforms = Array.from({ length: 10_000 }, () => uniform(random));
    expect(Math.min(...uniforms)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...uniforms)).toBeLessThan(1);
  });
});

describe("prediction", () => {
  it("has SNR √m·√(d/2B)", () => {
    expect(modelSnr({ blockSize: 32, needleWords: 4 }, 64)).toBeCloseTo(2, 12);
  });

  it("is hitProbability when both variances are the model's", () => {
    for (const snr of [0, 0.3, 1, 2.5, 4]) {
      for (const [competitors, slots] of [
        [1023, 8],
        [31, 4],
        [5, 5],
      ]) {
        const exact = hitProbability({ snr, competitors, slots });
        expect(hitProbabilityOf(snr, { noise: 1, signal: 1 }, competitors, slots)).toBeCloseTo(exact, 8);
      }
    }
  });

  it("with unequal variances is what a simulation finds", () => {
    const [snr, competitors, slots] = [1.2, 60, 4];
    const variances = { noise: 1.4, signal: 0.7 };
    const random = generator("simulation", seed);
    const trials = 4000;
    let hits = 0;
    for (let trial = 0; trial < trials; trial++) {
      const scores = gaussians(random, competitors + 1);
      const signal = Math.SQRT2 * snr + Math.sqrt(variances.signal) * scores[competitors];
      const above = scores.subarray(0, competitors).filter((z) => Math.sqrt(variances.noise) * z > signal);
      if (above.length < slots) hits += 1;
    }
    const probability = hitProbabilityOf(snr, variances, competitors, slots);
    const { low, high } = binomialInterval({ trials, probability, level: 0.9999 });
    expect(hits).toBeGreaterThanOrEqual(low);
    expect(hits).toBeLessThanOrEqual(high);
  });

  it("gives a needle's block the variance of ‖Σ w_i‖", () => {
    expect(textVariances({ blockSize: 10, needleWords: 1 }, 1)).toEqual({ noise: 1, signal: 0.9 });
    const directions = new Directions(seed, 64);
    const norms = Array.from({ length: 2000 }, (_, i) => {
      const sum = new Float64Array(64);
      for (let w = 0; w < 8; w++) {
        const direction = directions.of(`n${i}.${w}`);
        for (let c = 0; c < 64; c++) sum[c] += direction[c];
      }
      return Math.hypot(...sum);
    });
    const mean = norms.reduce((sum, x) => sum + x) / norms.length;
    const variance = norms.reduce((sum, x) => sum + (x - mean) ** 2, 0) / norms.length;
    // A needle that fills its block: a score is ‖Σ w_i‖/B, of variance over 1/(dB): variance·d/B.
    const { signal } = textVariances({ blockSize: 8, needleWords: 8 }, 1);
    expect((variance * 64) / 8 / signal).toBeGreaterThan(0.8);
    expect((variance * 64) / 8 / signal).toBeLessThan(1.2);
  });
});

describe("measureCell", () => {
  it("measures what the model predicts on a text of independent words", async () => {
    const grid = { blockSizes: [24, 64, 128], needleWords: [1, 3, 6] };
    const cells = await sweep(independentText(8192), 32, grid);
    // The centroids of n blocks have n·d random coordinates: a deviation of √(2/nd).
    for (const { varianceRatio, blocks } of cells) {
      expect(Math.abs(varianceRatio - 1)).toBeLessThan(5 * Math.sqrt(2 / (blocks * 32)));
    }
    const probabilities = cells.map(({ predicted }) => predicted.probability);
    expect(Math.min(...probabilities)).toBeLessThan(0.15);
    expect(Math.max(...probabilities)).toBeGreaterThan(0.6);
    // Each is outside once in a hundred times; three of nine would be, once in ten thousand.
    expect(cells.filter(({ inside }) => !inside).length).toBeLessThan(3);
  });

  it("measures the variance of clustered words, and explains with it", async () => {
    const cells = await sweep(clusteredText(8192, 4), 32, { blockSizes: [32], needleWords: [4, 8, 12] });
    for (const { varianceRatio } of cells) expect(varianceRatio).toBeGreaterThan(2);
    const outside = cells.filter(({ inside }) => !inside);
    expect(outside.length).toBeGreaterThan(0);
    for (const cell of outside) {
      expect(cell.hits).toBeLessThan(cell.predicted.low);
      expect(explain(cell)).toContain(`B = 32, m = ${cell.needleWords}: ${cell.hits} of 200`);
      expect(explain(cell)).toContain(cell.varianceRatio.toFixed(2));
    }
    const covered = cells.filter(({ hits, adjusted }) => adjusted.low <= hits && hits <= adjusted.high);
    expect(covered.length).toBeGreaterThanOrEqual(cells.length - 1);
  });

  it("counts what a plain search over all products finds, and leaks nothing", async () => {
    const text = independentText(2048).map((word, i) => (i % 3 === 0 ? "the" : word));
    const [headDim, blockSize, needleWords, needles, topK, tokens] = [24, 16, 3, 60, 5, 2048];
    const directions = new Directions(seed, headDim);
    const cell = await leakCheck(backend, () =>
      measureCell(backend, text, directions, { blockSize, needleWords }, { seed, topK, needles, tokens }),
    );
    const random = generator("haystack", seed, blockSize, needleWords);
    const haystack = buildHaystack(text, { tokens, blockSize, needles, needleWords }, random);
    let [hits, routed, dense] = [0, 0, 0];
    for (const needle of haystack.needles) {
      const query = directions.sum(needle.words);
      const products = haystack.words.map((word) =>
        directions.of(word).reduce((sum, x, c) => sum + x * query[c], 0),
      );
      const scores = Array.from({ length: tokens / blockSize }, (_, block) =>
        products.slice(block * blockSize, (block + 1) * blockSize).reduce((sum, p) => sum + p),
      );
      const chosen = scores
        .map((score, block) => ({ score, block }))
        .sort((a, b) => b.score - a.score)
        .slice(0, topK)
        .map(({ block }) => block);
      const own = Math.floor(needle.position / blockSize);
      const best = Math.max(...needle.words.map((_, i) => products[needle.position + i]));
      const attended = chosen.flatMap((block) => products.slice(block * blockSize, (block + 1) * blockSize));
      if (chosen.includes(own)) hits += 1;
      if (chosen.includes(own) && best === Math.max(...attended)) routed += 1;
      if (best === Math.max(...products)) dense += 1;
    }
    expect(cell).toMatchObject({ hits, blocks: 128, retrieval: { routed, dense, keysRead: 80 / 2048 } });
    expect(dense).toBeGreaterThan(0);
    expect(dense).toBeLessThan(needles);
  });
});
