import { ArgumentError, ShapeError } from "@moba-js/tensor";
import { expect, test } from "vitest";
import {
  convolutionGain,
  convolveKeys,
  linearConvolution,
  linearConvolutionGain,
  Random,
  siluParts,
} from "../src/index.js";

const seed = Date.now() % 2 ** 31;

test("the convolution is the written formula, entry by entry", () => {
  const random = new Random(seed);
  const [tokens, headDim, width] = [7, 3, 4];
  const keys = Float64Array.from({ length: tokens * headDim }, () => random.normal());
  const weights = Float64Array.from({ length: width * headDim }, () => random.normal());
  const linear = linearConvolution({ keys, headDim, weights });
  const convolved = convolveKeys({ keys, headDim, weights });
  for (let t = 0; t < tokens; t++) {
    for (let c = 0; c < headDim; c++) {
      let u = 0;
      for (let l = 0; l < width && l <= t; l++) u += weights[l * headDim + c] * keys[(t - l) * headDim + c];
      expect(linear[t * headDim + c]).toBeCloseTo(u, 13);
      expect(convolved[t * headDim + c]).toBeCloseTo(keys[t * headDim + c] + u / (1 + Math.exp(-u)), 13);
    }
  }
  expect(() => linearConvolution({ keys, headDim: 4, weights })).toThrow(ShapeError);
  expect(() => linearConvolution({ keys, headDim, weights: [] })).toThrow(/weights/);
});

test("a linear convolution multiplies a block's mean by the sum of its weights, edges aside", () => {
  // Keys that vanish near the ends of the block: no edges.
  const random = new Random(seed);
  const [blockSize, headDim] = [32, 2];
  const keys = Float64Array.from({ length: blockSize * headDim }, (_, i) =>
    i / headDim < blockSize - 4 ? random.normal() : 0,
  );
  const weights = [0.3, -1, 0.5, 2, 1.5, 0.25, 0.75, -0.5];
  const convolved = linearConvolution({ keys, headDim, weights });
  for (let c = 0; c < headDim; c++) {
    const sum = (values: Float64Array) => values.reduce((s, x, i) => (i % headDim === c ? s + x : s), 0);
    const gain = weights.reduce((s, w, i) => (i % headDim === c ? s + w : s), 0);
    expect(sum(convolved)).toBeCloseTo(gain * sum(keys), 11);
  }
});

test("a linear convolution never helps, whatever its weights, and costs nothing in long blocks", () => {
  const random = new Random(seed);
  for (let i = 0; i < 300; i++) {
    const weights = Array.from({ length: 1 + random.integer(9) }, () => random.normal());
    const blockSize = 1 + random.integer(64);
    expect(linearConvolutionGain({ weights, blockSize }), `seed ${seed}`).toBeLessThanOrEqual(1 + 1e-12);
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    if (Math.abs(total) > 0.5) {
      const long = linearConvolutionGain({ weights, blockSize: 100_000 });
      expect(long, `seed ${seed}: ${weights}`).toBeCloseTo(Math.sign(total), 1);
    }
  }
  expect(linearConvolutionGain({ weights: [2], blockSize: 16 })).toBe(1);
  expect(() => linearConvolutionGain({ weights: [], blockSize: 16 })).toThrow(ArgumentError);
});

test("SiLU is half linear, half even", () => {
  for (const u of [-30, -3, -1, -0.01, 0, 0.01, 1, 3, 30]) {
    const { linear, even } = siluParts(u);
    expect(linear + even).toBeCloseTo(u / (1 + Math.exp(-u)), 12);
    expect(even).toBeCloseTo(siluParts(-u).even, 14);
    expect(even).toBeGreaterThanOrEqual(0);
  }
});

test("the gain: nothing at weight 0, no gain without positive codes, more for local signal than for scattered", () => {
  const setting = { width: 5, weight: 1, blockSize: 128, amplitude: 1, clusterSize: 4 };
  expect(convolutionGain({ ...setting, weight: 0, adjacent: true, positive: true })).toBeCloseTo(1, 12);
  for (const weight of [0.3, 1, 3, 10]) {
    for (const amplitude of [0.1, 0.5, 1, 2]) {
      const at = { ...setting, weight, amplitude };
      const local = convolutionGain({ ...at, adjacent: true, positive: true });
      const scattered = convolutionGain({ ...at, adjacent: false, positive: true });
      expect(local).toBeGreaterThan(scattered);
      expect(convolutionGain({ ...at, adjacent: true, positive: false })).toBeLessThan(1);
    }
  }
  expect(() => convolutionGain({ ...setting, clusterSize: 129, adjacent: true, positive: true })).toThrow(
    /clusterSize/,
  );
});
