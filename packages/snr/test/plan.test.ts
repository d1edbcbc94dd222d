import { ArgumentError } from "@moba-js/tensor";
import { describe, expect, test } from "vitest";
import {
  type CostMeasurement,
  convolveKeys,
  countDenseWork,
  countWork,
  createWorld,
  estimateSnr,
  fitCost,
  hitProbability,
  NOMINAL_COST,
  plan,
  planChart,
  planPage,
  planTable,
  predictSeconds,
  Random,
  separationForRecall,
  simulate,
} from "../src/index.js";

const seed = Date.now() % 2 ** 31;

describe("work", () => {
  test("is what a loop over queries and blocks counts", () => {
    const random = new Random(seed);
    for (let i = 0; i < 50; i++) {
      const tokens = 1 + random.integer(200);
      const [blockSize, topK] = [1 + random.integer(40), 1 + random.integer(6)];
      const [headDim, heads] = [8, 3];
      let [scored, pairs, slots] = [0, 0, 0];
      for (let position = 0; position < tokens; position++) {
        const own = Math.floor(position / blockSize);
        const chosen = Math.min(topK - 1, own);
        scored += own;
        slots += chosen;
        pairs += chosen * blockSize + (position - own * blockSize + 1);
      }
      const work = countWork({ tokens, headDim, heads, blockSize, topK, width: 0 });
      expect(work.routingFlops, `seed ${seed}`).toBe(heads * scored * 2 * headDim);
      expect(work.attentionFlops, `seed ${seed}`).toBe(heads * pairs * 4 * headDim);
      expect(work.bytes).toBe(heads * headDim * 2 * (5 * tokens + 3 * slots));
      const convolved = countWork({ tokens, headDim, heads, blockSize, topK, width: 3 });
      expect(convolved.bytes - work.bytes).toBe(heads * headDim * 2 * 2 * tokens);
    }
  });

  test("attending every block is the work of dense attention, but for routing and slots", () => {
    const shape = { tokens: 1000, headDim: 64 };
    const all = countWork({ ...shape, blockSize: 100, topK: 10, width: 0 });
    expect(all.attentionFlops).toBe(countDenseWork(shape).attentionFlops);
    expect(() => countWork({ ...shape, blockSize: 0, topK: 1, width: 0 })).toThrow(/blockSize/);
    expect(() => countDenseWork({ ...shape, heads: 0 })).toThrow(/heads/);
  });
});

describe("the cost of a backend", () => {
  const works = [1024, 4096, 16384].flatMap((tokens) =>
    [32, 128].flatMap((blockSize) =>
      [2, 8].map((topK) => countWork({ tokens, headDim: 64, heads: 8, blockSize, topK, width: 0 })),
    ),
  );

  test("is recovered from times, exact ones exactly and noisy ones closely", () => {
    const truth = { secondsPerRoutingFlop: 3e-12, secondsPerAttentionFlop: 1e-12, secondsPerByte: 5e-12 };
    const exact = fitCost(works.map((work) => ({ work, seconds: predictSeconds(work, truth) })));
    const random = new Random(seed);
    const noisy = fitCost(
      works.map((work) => ({ work, seconds: predictSeconds(work, truth) * (1 + 0.02 * random.normal()) })),
    );
    for (const name of Object.keys(truth) as (keyof typeof truth)[]) {
      expect(Math.abs(exact[name] / truth[name] - 1)).toBeLessThan(1e-6);
      expect(Math.abs(noisy[name] / truth[name] - 1), `seed ${seed}`).toBeLessThan(0.3);
    }
  });

  test("is never negative", () => {
    const truth = { secondsPerRoutingFlop: 0, secondsPerAttentionFlop: 1e-12, secondsPerByte: 0 };
    const random = new Random(seed);
    const fit = fitCost(
      works.map((work) => ({ work, seconds: predictSeconds(work, truth) * (1 + 0.02 * random.normal()) })),
    );
    expect(Math.min(...Object.values(fit))).toBeGreaterThanOrEqual(0);
    expect(Math.abs(fit.secondsPerAttentionFlop / 1e-12 - 1), `seed ${seed}`).toBeLessThan(0.1);
  });

  test("needs measurements that tell work apart", () => {
    const one: CostMeasurement = { work: works[0], seconds: 1 };
    expect(() => fitCost([one, one])).toThrow(/at least 3/);
    expect(() => fitCost([one, one, { ...one, seconds: 0 }])).toThrow(/seconds/);
    const nothing = { routingFlops: 0, attentionFlops: 0, bytes: 0 };
    expect(() => fitCost(new Array(3).fill({ work: nothing, seconds: 1 }))).toThrow(/vary/);
  });
});

describe("the plan", () => {
  const problem = { tokens: 65536, headDim: 128, separation: 2.5, targetRecall: 0.95 };

  test("takes the smallest k that reaches the target at each block size, and ranks by cost", () => {
    const { entries, denseSeconds } = plan(problem);
    expect(entries.map(({ blockSize }) => blockSize).sort((a, b) => a - b)).toEqual([
      16, 32, 64, 128, 256, 512,
    ]);
    for (const [i, { blockSize, topK, snr, recall, seconds, work }] of entries.entries()) {
      const competitors = 65536 / blockSize - 2;
      expect(recall).toBe(hitProbability({ snr, competitors, slots: topK - 1 }));
      expect(recall).toBeGreaterThanOrEqual(0.95 - 1e-12);
      expect(hitProbability({ snr, competitors, slots: topK - 2 })).toBeLessThan(0.95);
      expect(seconds).toBe(predictSeconds(work, NOMINAL_COST));
      if (i > 0) expect(seconds).toBeGreaterThanOrEqual(entries[i - 1].seconds);
    }
    expect(denseSeconds).toBe(predictSeconds(countDenseWork(problem), NOMINAL_COST));
  });

  test("a wider convolution is chosen when its separation is worth its cost, and only then", () => {
    const withWidth = (separation: number) =>
      plan({
        ...problem,
        separation: [
          { width: 0, separation: 2.5 },
          { width: 3, separation },
        ],
      }).entries[0].width;
    expect(withWidth(5)).toBe(3);
    expect(withWidth(2.5)).toBe(0);
  });

  test("a faster matrix unit moves the choice to larger blocks than faster memory does", () => {
    const at = (cost: typeof NOMINAL_COST) => plan({ ...problem, cost }).entries[0].blockSize;
    const { secondsPerRoutingFlop, secondsPerAttentionFlop } = NOMINAL_COST;
    expect(
      at({ ...NOMINAL_COST, secondsPerAttentionFlop: secondsPerAttentionFlop / 100 }),
    ).toBeGreaterThanOrEqual(at({ ...NOMINAL_COST, secondsPerRoutingFlop: secondsPerRoutingFlop / 100 }));
  });

  test("an unreachable recall ends in dense attention, and the rest is refused by name", () => {
    const { entries } = plan({ ...problem, separation: 1e-6, blockSizes: [512] });
    expect(entries[0].topK).toBeGreaterThan(0.94 * (65536 / 512 - 1));
    expect(() => plan({ ...problem, separation: 0 })).toThrow(/only dense attention/);
    expect(() => plan({ ...problem, separation: [] })).toThrow(/at least one width/);
    expect(() => plan({ ...problem, targetRecall: 1 })).toThrow(/targetRecall/);
    expect(() => plan({ ...problem, tokens: 20 })).toThrow(/at least 3 blocks/);
    expect(() => plan({ ...problem, blockSizes: [0] })).toThrow(/blockSizes/);
    const { separation, ...bare } = problem;
    expect(() => plan(bare)).toThrow(ArgumentError);
    const few = { data: new Float64Array(256).fill(1), shape: [2, 1, 128] as const };
    const samples = { queries: few, keys: few, answers: [0, 0] };
    expect(() => plan({ ...bare, samples })).toThrow(/samples.queries.*40 queries/);
    expect(() => plan({ ...problem, samples })).toThrow(/exactly one/);
  });

  test("from samples: the SNR is measured at each block size and width, and short samples leave blocks out", () => {
    const [headDim, active] = [32, 2];
    const world = createWorld({
      blocks: 16,
      blockSize: 64,
      headDim,
      separation: 0.6,
      clusterSize: 8,
      adjacent: true,
      codes: { active, signed: false },
    });
    // Contexts one after the other, each query in its own context's keys: many queries from one sequence of keys.
    const random = new Random(seed);
    const scenes = Array.from({ length: 4 }, () => world.draw(random));
    const keys = Float64Array.from(
      scenes.flatMap((scene) => Array.from(scene.keys, (x) => x * Math.sqrt(headDim))),
    );
    const queries = Float64Array.from(scenes.flatMap((scene) => Array.from(scene.queries)));
    const answers = scenes.flatMap((scene, i) => Array.from(scene.needles, (token) => token + i * 16 * 64));
    const count = answers.length;
    const weights = new Float64Array(3 * headDim).fill(1);
    const samples = {
      queries: { data: queries, shape: [count, 1, headDim] as const },
      keys: { data: keys, shape: [4 * 16 * 64, 1, headDim] as const },
      answers,
      causal: false,
      convolutions: [{ width: 3, weights }],
    };
    const { entries } = plan({
      tokens: 65536,
      headDim,
      targetRecall: 0.9,
      samples,
      blockSizes: [32, 64, 128, 4096],
    });
    expect(new Set(entries.map(({ blockSize }) => blockSize))).toEqual(new Set([32, 64, 128]));
    for (const { blockSize, width, snr } of entries) {
      const data = width === 0 ? keys : convolveKeys({ keys, headDim, weights });
      const view = { data, shape: samples.keys.shape };
      const { empiricalSnr } = estimateSnr({ ...samples, keys: view, blockSize, topK: 1 });
      expect(snr).toBeCloseTo(empiricalSnr.value, 10);
    }
    // Local signal in positive codes: the convolution helps.
    const snrAt = (width: number) => entries.find((e) => e.width === width && e.blockSize === 64)!.snr;
    expect(snrAt(3), `seed ${seed}`).toBeGreaterThan(snrAt(0));
  });
});

test("the first choice, simulated, meets its target within 1 % in at least 95 of 100 random problems", () => {
  const random = new Random(seed);
  const misses: string[] = [];
  for (let i = 0; i < 100; i++) {
    const headDim = [32, 64, 128][random.integer(3)];
    const tokens = Math.round(1024 * 8 ** random.uniform());
    const targetRecall = 0.8 + 0.19 * random.uniform();
    // A separation with which middling blocks and top-k do: from easy to hard.
    const slots = 1 + random.integer(8);
    const blockSize = 2 ** (4 + random.integer(4));
    const competitors = Math.max(8 * slots, Math.ceil(tokens / blockSize) - 2);
    const separation = separationForRecall({ recall: targetRecall, competitors, slots, headDim, blockSize });
    const [first] = plan({ tokens, headDim, separation, targetRecall }).entries;
    // The last query's own block takes a slot and does not compete.
    const blocks = Math.ceil(tokens / first.blockSize) - 1;
    const world = createWorld({ blocks, blockSize: first.blockSize, headDim, separation });
    // Enough trials for a standard error of 0.004, so that noise alone rarely makes up the 1 %.
    const trials = Math.ceil((targetRecall * (1 - targetRecall)) / 0.004 ** 2);
    const { recall } = simulate(world, { slots: first.topK - 1, trials, seed: random.integer(2 ** 31) });
    if (recall.value < targetRecall - 0.01) {
      misses.push(
        `${tokens} tokens, B ${first.blockSize}, k ${first.topK}: ${recall.value} < ${targetRecall}`,
      );
    }
  }
  console.log(`missed: ${misses.length} of 100`);
  expect(misses.length, `seed ${seed}\n${misses.join("\n")}`).toBeLessThanOrEqual(5);
});

describe("what the planner prints", () => {
  const result = plan({
    tokens: 16384,
    headDim: 64,
    separation: [
      { width: 0, separation: 2 },
      { width: 3, separation: 3 },
    ],
    targetRecall: 0.9,
  });

  test("a table with a line for each entry, columns aligned", () => {
    const lines = planTable(result).split("\n");
    expect(lines).toHaveLength(1 + result.entries.length);
    expect(new Set(lines.map((line) => line.length)).size).toBe(1);
    const [first] = result.entries;
    expect(lines[1].trim().split(/\s+/).slice(0, 3)).toEqual(
      [first.blockSize, first.topK, first.width].map(String),
    );
  });

  test("a chart for each width and a page, self-contained and free of NaN", () => {
    for (const width of [0, 3]) {
      const svg = planChart(result, width);
      expect(svg.match(/<circle[^>]*><title>/g)).toHaveLength(6);
      expect(svg).not.toMatch(/NaN|Infinity|undefined/);
    }
    const page = planPage(result);
    expect(page.match(/<svg/g)).toHaveLength(2);
    expect(page).not.toMatch(/NaN|undefined|<script|<link|src=/);
    expect(page.replaceAll("http://www.w3.org/2000/svg", "")).not.toContain("http");
  });
});
