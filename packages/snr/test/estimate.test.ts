import { ArgumentError, ShapeError } from "@moba-js/tensor";
import { describe, expect, test } from "vitest";
import {
  confidenceInterval,
  correlatedNoise,
  createWorld,
  type Estimate,
  type EstimateOptions,
  estimateSnr,
  type PackedView,
  Random,
  snr,
  type World,
} from "../src/index.js";

const seed = Date.now() % 2 ** 31;

const view = (data: Float64Array, headDim: number): PackedView => ({
  data,
  shape: [data.length / headDim, 1, headDim],
});

/** One context of a world as a sample: every query may look at every block. */
function sampleOf(world: World, seed: number, topK = 4): EstimateOptions {
  const { keys, queries, needles } = world.draw(new Random(seed));
  return {
    queries: view(queries, world.headDim),
    keys: view(keys, world.headDim),
    answers: needles,
    blockSize: world.blockSize,
    topK,
    causal: false,
  };
}

const shape = { blocks: 32, blockSize: 32, headDim: 128 };

describe("in the model's own world", () => {
  const world = createWorld({ ...shape, separation: 0.8, clusterSize: 4, clusterSeparation: 0.6 });
  const runs = Array.from({ length: 100 }, (_, i) => estimateSnr(sampleOf(world, seed + i)));
  const truth: [keyof (typeof runs)[0], number][] = [
    ["muSignal", 0.8],
    ["muNoise", 0],
    ["variance", 1 / 128],
    ["separation", 0.8],
    ["clusterSize", 4],
    ["clusterSeparation", 0.6],
    ["effectiveSeparation", 0.8 + 3 * 0.6],
    ["modelSnr", snr({ ...shape, separation: 2.6 })],
    ["empiricalSnr", snr({ ...shape, separation: 2.6 })],
  ];

  test.each(truth)("the interval of %s at level 0.95 covers the truth, %f", (name, value) => {
    const covered = runs.filter((run) => {
      const { low, high } = confidenceInterval(run[name] as Estimate);
      return low <= value && value <= high;
    });
    // The jackknife is approximate; 86 of 100 is four deviations below 95.
    expect(covered.length, `seed ${seed}`).toBeGreaterThanOrEqual(86);
    const mean = runs.reduce((sum, run) => sum + (run[name] as Estimate).value, 0) / runs.length;
    const error = runs.reduce((sum, run) => sum + (run[name] as Estimate).standardError, 0) / runs.length;
    // No bias beyond a third of a standard error (which the mean of 100 runs knows to a tenth).
    expect(Math.abs(mean - value), `seed ${seed}`).toBeLessThan(0.7 * error);
  });

  test("predicted recall is measured recall", () => {
    const mean = (pick: (run: (typeof runs)[0]) => Estimate) =>
      runs.reduce((sum, run) => sum + pick(run).value, 0) / runs.length;
    const measured = mean((run) => run.measuredRecall);
    // 12 800 queries: a standard error of 0.004 at most.
    expect(Math.abs(mean((run) => run.predictedRecall) - measured), `seed ${seed}`).toBeLessThan(0.02);
    expect(Math.abs(mean((run) => run.modelRecall) - measured), `seed ${seed}`).toBeLessThan(0.02);
  });

  test("a lone signal key is told from a cluster", () => {
    const lone = createWorld({ ...shape, separation: 2 });
    const sizes = Array.from(
      { length: 30 },
      (_, i) => estimateSnr(sampleOf(lone, seed + i)).clusterSize.value,
    );
    // The rest of the block exceeds twice its standard error by chance in about 1 of 40 cases.
    expect(sizes.filter((size) => size === 1).length, `seed ${seed}`).toBeGreaterThanOrEqual(25);
  });
});

test("keys that depend on each other: the empirical SNR knows, the closed form from Δμ_eff does not", () => {
  const world = createWorld({ ...shape, separation: 1.5, noise: correlatedNoise(0.5) });
  const runs = Array.from({ length: 30 }, (_, i) => estimateSnr(sampleOf(world, seed + i)));
  const mean = (pick: (run: (typeof runs)[0]) => Estimate) =>
    runs.reduce((sum, run) => sum + pick(run).value, 0) / runs.length;
  const measured = mean((run) => run.measuredRecall);
  expect(Math.abs(mean((run) => run.predictedRecall) - measured), `seed ${seed}`).toBeLessThan(0.03);
  expect(mean((run) => run.modelRecall) - measured, `seed ${seed}`).toBeGreaterThan(0.1);
  expect(mean((run) => run.modelSnr) / mean((run) => run.empiricalSnr)).toBeGreaterThan(1.4);
});

test("lengths of queries and a mean common to all keys change nothing that routing sees", () => {
  const world = createWorld({ ...shape, separation: 1.5, clusterSize: 2 });
  const sample = sampleOf(world, seed);
  const plain = estimateSnr(sample);
  const random = new Random(seed);
  const lengths = Array.from({ length: 128 }, () => Math.exp(random.normal()));
  const mean = Array.from({ length: 128 }, () => random.normal());
  const queries = Float64Array.from(sample.queries.data, (x, i) => x * lengths[Math.floor(i / 128)]);
  const keys = Float64Array.from(sample.keys.data, (x, i) => x + mean[i % 128]);
  const moved = estimateSnr({ ...sample, queries: view(queries, 128), keys: view(keys, 128) });
  const unmoved = [
    "separation",
    "clusterSize",
    "effectiveSeparation",
    "empiricalSnr",
    "measuredRecall",
  ] as const;
  for (const name of unmoved) expect(moved[name].value).toBeCloseTo(plain[name].value, 8);
});

/** The blocks of DESIGN's causal routing for one query, own block first, in plain words: the oracle of this file. */
function chosenBlocks(
  q: number[],
  keys: number[][],
  position: number,
  blockSize: number,
  topK: number,
): number[] {
  const own = Math.floor(position / blockSize);
  const scores = Array.from({ length: own }, (_, block) => {
    const rows = keys.slice(block * blockSize, (block + 1) * blockSize);
    return rows.reduce((sum, key) => sum + key.reduce((s, x, c) => s + x * q[c], 0), 0) / blockSize;
  });
  const order = scores.map((_, block) => block).sort((a, b) => scores[b] - scores[a] || a - b);
  return [own, ...order.slice(0, topK - 1)];
}

test("packed heads, grouped queries, causal: recall is that of the router, counted independently", () => {
  const random = new Random(seed);
  const [queryCount, keyCount, heads, keyHeads, d, blockSize, topK] = [150, 205, 4, 2, 8, 10, 4];
  const normals = (count: number) => Float32Array.from({ length: count }, () => random.normal());
  const queries: PackedView = { data: normals(queryCount * heads * d), shape: [queryCount, heads, d] };
  const keys: PackedView = { data: normals(keyCount * keyHeads * d), shape: [keyCount, keyHeads, d] };
  const positions = Array.from({ length: queryCount }, (_, i) => i + keyCount - queryCount);
  const answers = positions.map((position) => (random.uniform() < 0.1 ? -1 : random.integer(position + 1)));
  for (let head = 0; head < heads; head++) {
    const estimate = estimateSnr({ queries, keys, head, answers, blockSize, topK });
    const keyHead = Math.floor(head / 2);
    const row = ({ data, shape }: PackedView, token: number, head: number) =>
      Array.from(data.slice((token * shape[1] + head) * d, (token * shape[1] + head + 1) * d));
    const rows = Array.from({ length: keyCount }, (_, token) => row(keys, token, keyHead));
    let [routed, local, hits] = [0, 0, 0];
    positions.forEach((position, i) => {
      if (answers[i] < 0) return;
      const own = Math.floor(position / blockSize);
      const block = Math.floor(answers[i] / blockSize);
      if (block === own) local++;
      else if (own >= 2) {
        routed++;
        if (chosenBlocks(row(queries, i, head), rows, position, blockSize, topK).includes(block)) hits++;
      }
    });
    expect(estimate.queries, `seed ${seed}`).toBe(routed);
    expect(estimate.local).toBe(local);
    expect(estimate.measuredRecall.value, `seed ${seed}`).toBeCloseTo(hits / routed, 12);
  }
});

test("attention weights name the answer by their largest", () => {
  const world = createWorld({ ...shape, separation: 2 });
  const { answers, ...sample } = sampleOf(world, seed);
  const attention = new Float32Array(128 * 1024);
  Array.from(answers as Int32Array).forEach((answer, query) => {
    attention[query * 1024 + answer] = 0.9;
    attention[query * 1024 + ((answer + 1) % 1024)] = 0.1;
  });
  expect(estimateSnr({ ...sample, attention })).toEqual(estimateSnr({ ...sample, answers: answers! }));
});

test("bad samples are refused by name", () => {
  const sample = sampleOf(createWorld({ ...shape, separation: 1 }), seed);
  const { answers, ...bare } = sample;
  const fewer = { data: sample.keys.data.subarray(1), shape: sample.keys.shape };
  const cases: [Partial<EstimateOptions>, RegExp, unknown][] = [
    [{ blockSize: 0 }, /blockSize/, ArgumentError],
    [{ topK: 1.5 }, /topK/, ArgumentError],
    [{ head: 1 }, /head/, ArgumentError],
    [{ attention: new Float32Array(128 * 1024) }, /exactly one/, ArgumentError],
    [{ answers: [1, 2] }, /answers/, ShapeError],
    [{ answers: new Array(128).fill(2000) }, /answers\[0\].*2000/, ArgumentError],
    [{ answers: new Array(128).fill(0.5) }, /answers\[0\]/, ArgumentError],
    [{ answers: new Array(128).fill(-1) }, /at least 40 queries/, ArgumentError],
    [{ keys: fewer }, /keys/, ShapeError],
    [{ keys: { data: new Float64Array(64), shape: [1, 1, 64] } }, /keys/, ShapeError],
    [{ queries: { data: new Float64Array(0), shape: [0, 1, 128] } }, /queries/, ShapeError],
    [{ causal: true, answers: new Array(128).fill(1023) }, /at most the query's position/, ArgumentError],
  ];
  for (const [change, message, type] of cases) {
    const run = () => estimateSnr({ ...sample, ...change });
    expect(run).toThrow(message);
    expect(run).toThrow(type as typeof ArgumentError);
  }
  expect(() => estimateSnr(bare as EstimateOptions)).toThrow(/exactly one/);
});
