import { describe, expect, test } from "vitest";
import { reproduce, reproductionReport } from "../src/index.js";

const started = performance.now();
const progress: number[] = [];
const data = reproduce({ onProgress: (_, done) => progress.push(done) });
const html = reproductionReport(data);
const seconds = (performance.now() - started) / 1000;

const within = (row: {
  readonly predicted: number;
  readonly measured: { value: number; standardError: number };
}) => Math.abs(row.measured.value - row.predicted) / row.measured.standardError;

test("the report takes less than 3 minutes, says how far it is, and is one self-contained page", () => {
  console.log(`reproduction: ${seconds.toFixed(1)} s, ${(html.length / 1000).toFixed(0)} kB`);
  expect(seconds).toBeLessThan(180);
  expect(progress).toEqual([...progress].sort((a, b) => a - b));
  expect([progress[0], progress.at(-1)]).toEqual([0, 1]);
  expect(html).not.toMatch(/NaN|undefined|<script|<link|src=/);
  expect(html.replaceAll("http://www.w3.org/2000/svg", "")).not.toContain("http");
  expect(html.match(/<svg/g)).toHaveLength(5);
  expect(reproductionReport(data)).toBe(html);
});

test("the closed form lies inside the simulation's 99 % interval in at least 38 of 40 settings", () => {
  expect(data.accuracy).toHaveLength(40);
  expect(data.accuracy.filter(({ inside }) => inside).length).toBeGreaterThanOrEqual(38);
  // And the settings are spread: nearly all recalls, many shapes.
  const recalls = data.accuracy.map(({ predicted }) => predicted);
  expect(Math.min(...recalls)).toBeLessThan(0.25);
  expect(Math.max(...recalls)).toBeGreaterThan(0.9);
  const shapes = data.accuracy.map(({ headDim, blockSize, blocks }) => `${headDim} ${blockSize} ${blocks}`);
  expect(new Set(shapes).size).toBeGreaterThan(35);
});

test("the log-log slope of the empirical SNR is 0.50 ± 0.02 in d/B, and in d and B alone", () => {
  expect(data.law).toHaveLength(24);
  expect(Math.abs(data.slopes.ratio.value - 0.5)).toBeLessThan(0.02);
  expect(Math.abs(data.slopes.headDim.value - 0.5)).toBeLessThan(0.02);
  expect(Math.abs(data.slopes.blockSize.value + 0.5)).toBeLessThan(0.02);
  // The errors say how much that shows.
  for (const slope of Object.values(data.slopes)) expect(slope.standardError).toBeLessThan(0.007);
});

test("recall at fixed compute and the clustering multiplier follow their closed forms", () => {
  for (const row of data.fixedCompute) {
    expect(Math.abs(row.measured.value - row.predicted)).toBeLessThan(4 * row.measured.standardError + 0.003);
  }
  for (const row of data.clustering) expect(within(row)).toBeLessThan(4);
  const recalls = data.fixedCompute
    .filter(({ separation }) => separation === 2)
    .map(({ measured }) => measured.value);
  expect(recalls).toEqual([...recalls].sort((a, b) => a - b));
});

describe("the key convolution", () => {
  test("linear: the SNR factor is the predicted one", () => {
    for (const row of data.linear) expect(within(row)).toBeLessThan(4);
  });

  test("with SiLU: the derived gain holds to a few percent", () => {
    for (const { predicted, measured } of data.convolution) {
      expect(Math.abs(measured.value - predicted)).toBeLessThan(0.06 + 3 * measured.standardError);
    }
  });

  test("it helps local signal, helps scattered signal less, and hurts where signs are random", () => {
    const at = (kind: string, width: number) =>
      data.convolution.find((r) => r.kind === kind && r.width === width && r.amplitude === 1.5)!.measured;
    for (const width of [3, 5]) {
      const [local, scattered, signed] = ["local", "scattered", "signed"].map((kind) => at(kind, width));
      const apart = 3 * Math.hypot(local.standardError, scattered.standardError);
      expect(local.value - scattered.value).toBeGreaterThan(apart);
      expect(scattered.value - signed.value).toBeGreaterThan(apart);
    }
    const signed5 = at("signed", 5);
    expect(1 - signed5.value).toBeGreaterThan(3 * signed5.standardError);
    const [local, scattered, signed] = data.ablation.map(
      ({ measured: [without, , five] }) => five.value - without.value,
    );
    expect(local).toBeGreaterThan(0.05);
    expect(local).toBeGreaterThan(scattered);
    expect(signed).toBeLessThan(0);
  });

  test("it hurts weak scattered signal, where it does not hurt weak local signal", () => {
    const [local, scattered] = data.convolution.filter(({ amplitude }) => amplitude === 0.25);
    expect(1 - scattered.measured.value).toBeGreaterThan(4 * scattered.measured.standardError);
    expect(1 - local.measured.value).toBeLessThan(2 * local.measured.standardError);
  });
});

test("each broken assumption shows where the closed form must not be trusted, and what mends it", () => {
  const row = (name: string) => data.assumptions.find((one) => one.name.startsWith(name))!;
  for (const name of ["the model's own", "a common mean", "unequal norms of keys"]) {
    expect(row(name).verdict, name).toBe("holds");
  }
  for (const name of ["words that come in bursts", "correlated", "a topic"]) {
    const { verdict, outcomes } = row(name);
    expect(verdict, name).toBe("too high");
    for (const { predicted, measured, repaired } of outcomes) {
      // The measured SNR takes away at least nine tenths of the error.
      expect(Math.abs(repaired - measured.recall.value), name).toBeLessThan(
        0.1 * (predicted - measured.recall.value),
      );
    }
  }
  for (const name of ["unequal norms of blocks", "signal split", "three needles"]) {
    expect(row(name).verdict, name).toBe("too high");
  }
});
