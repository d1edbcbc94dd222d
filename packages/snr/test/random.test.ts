import { ArgumentError } from "@moba-js/tensor";
import { expect, test } from "vitest";
import { binomialInterval, normalCdf, Random } from "../src/index.js";

test("the same seed gives the same stream, another seed another", () => {
  const draw = (seed: number) => {
    const random = new Random(seed);
    return Array.from({ length: 100 }, () => random.normal());
  };
  expect(draw(7)).toEqual(draw(7));
  expect(draw(8)).not.toEqual(draw(7));
  expect(() => new Random(-1)).toThrow(ArgumentError);
});

test("normal numbers fall into every bin as often as Φ says, far tails included", () => {
  const seed = Date.now() % 2 ** 31;
  const random = new Random(seed);
  const edges = Array.from({ length: 81 }, (_, i) => -4 + i / 10);
  const counts = new Array<number>(edges.length + 1).fill(0);
  const trials = 4_000_000;
  for (let i = 0; i < trials; i++) {
    counts[Math.max(0, Math.min(edges.length, Math.floor((random.normal() + 4) * 10) + 1))]++;
  }
  let outside = 0;
  counts.forEach((count, bin) => {
    const above = bin === 0 ? 0 : normalCdf(edges[bin - 1]);
    const probability = (bin === edges.length ? 1 : normalCdf(edges[bin])) - above;
    const { low, high } = binomialInterval({ trials, probability, level: 0.9999 });
    if (count < low || count > high) outside++;
  });
  // 82 bins, each outside with probability 1e-4.
  expect(outside, `seed ${seed}`).toBeLessThanOrEqual(1);
});

test("neighbouring draws and neighbouring seeds do not resemble each other", () => {
  const seed = Date.now() % 2 ** 31;
  const correlation = (a: readonly number[], b: readonly number[]) =>
    a.reduce((sum, x, i) => sum + x * b[i], 0) / a.length;
  const first = new Random(seed);
  const stream = Array.from({ length: 100_001 }, () => first.normal());
  expect(Math.abs(correlation(stream.slice(1), stream.slice(0, -1))), `seed ${seed}`).toBeLessThan(0.016);
  const starts = Array.from({ length: 100_001 }, (_, i) => new Random(seed + i).normal());
  expect(Math.abs(correlation(starts.slice(1), starts.slice(0, -1))), `seed ${seed}`).toBeLessThan(0.016);
});
