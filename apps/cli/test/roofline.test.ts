import { ReferenceBackend } from "@moba-js/reference";
import fc from "fast-check";
import { expect, it } from "vitest";
import { normalTensor } from "../src/normal-tensor.js";
import { generator } from "../src/random.js";
import { attentionWork, decodeWork, leastTime } from "../src/roofline.js";
import { freshSeed } from "./support.js";

const seed = freshSeed();

const small = fc.record({
  batch: fc.integer({ min: 1, max: 3 }),
  tokens: fc.integer({ min: 1, max: 90 }),
  heads: fc.constant(4),
  kvHeads: fc.constantFrom(1, 2, 4),
  headDim: fc.constantFrom(8, 64),
  blockSize: fc.integer({ min: 1, max: 40 }),
  topK: fc.integer({ min: 1, max: 6 }),
  dtype: fc.constantFrom("f32", "bf16"),
} as const);

it("counts the scores of attention and routing as a loop over all pairs does", () => {
  fc.assert(
    fc.property(small, (shape) => {
      const { batch, tokens, heads, headDim, blockSize, topK } = shape;
      let [dense, routed, attended] = [0, 0, 0];
      for (let query = 0; query < tokens; query++) {
        const own = Math.floor(query / blockSize);
        for (let key = 0; key <= query; key++) dense += 1;
        for (let block = 0; block < own; block++) routed += 1;
        attended += query - own * blockSize + 1 + Math.min(topK - 1, own) * blockSize;
      }
      const work = attentionWork(shape);
      const flop = (scores: number) => 2 * headDim * heads * batch * scores;
      expect(work.dense.flop).toBe(2 * flop(dense));
      expect(work.route.flop).toBe(flop(routed));
      expect(work.attend.flop).toBe(2 * flop(attended));
      expect(work.moba.flop).toBe(work.route.flop + work.attend.flop);
      expect(work.backward.flop).toBe(5 * flop(attended));
      expect(work.forwardBackward.flop).toBe(work.moba.flop + work.backward.flop);
      expect(work.denseBackward.flop).toBe(5 * flop(dense));
      expect(work.denseForwardBackward.flop).toBe(7 * flop(dense));
    }),
    { seed },
  );
});

it("counts each input and each result of forward and backward once", () => {
  const shape = { batch: 2, tokens: 1000, heads: 8, kvHeads: 2, headDim: 64, blockSize: 100, topK: 3 };
  const { backward, forwardBackward, denseBackward } = attentionWork({ ...shape, dtype: "bf16" });
  const [q, k, lse, indices] = [2000 * 8 * 64 * 2, 2000 * 2 * 64 * 2, 2000 * 8 * 4, 2000 * 8 * 3 * 4];
  const bytes = q + k + k + q + q + lse + q + k + k; // q, k, v, dOut, out, lse, dq, dk, dv
  expect(denseBackward.bytes).toBe(bytes);
  expect(backward.bytes).toBe(bytes + indices);
  expect(forwardBackward.bytes).toBe(bytes + indices);
});

it("bounds known devices by arithmetic or by bandwidth, and others not at all", () => {
  const name = "NVIDIA H100 80GB HBM3 (compute 9.0)";
  expect(leastTime(name, "bf16", { flop: 989e12, bytes: 3.35e9 })).toBeCloseTo(1000, 6);
  expect(leastTime(name, "f32", { flop: 67e12, bytes: 0 })).toBeCloseTo(1000, 6);
  expect(leastTime(name, "bf16", { flop: 1, bytes: 3.35e12 })).toBeCloseTo(1000, 6);
  expect(leastTime("plain TypeScript", "f32", { flop: 1, bytes: 1 })).toBeUndefined();
});

it("counts dense decoding as one read of the cache", () => {
  const shape = { batch: 2, tokens: 1000, heads: 8, kvHeads: 2, headDim: 64, blockSize: 100, topK: 3 };
  const { dense, moba } = decodeWork({ ...shape, dtype: "bf16" });
  expect(dense.bytes).toBe(2 * (2 * 8 * 64 * 2) + 2 * (2 * 1000 * 2 * 64 * 2));
  expect(moba.bytes).toBe(2 * (2 * 8 * 64 * 2) + 2 * 2 * 64 * (10 * 4 + 2 * 300 * 2));
});

it("makes large tensors of normal values without repeated rows", async () => {
  using tensor = normalTensor(new ReferenceBackend(), generator("large", seed), [2 ** 17 + 3, 80], "bf16");
  const values = await tensor.values();
  const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
  const variance = values.reduce((sum, x) => sum + x * x, 0) / values.length;
  // Of 2^23 drawn values: 7 standard errors.
  expect(Math.abs(mean)).toBeLessThan(7 / Math.sqrt(2 ** 23));
  expect(Math.abs(variance - 1)).toBeLessThan(7 * Math.sqrt(2 / 2 ** 23) + 2 ** -9);
  const stored = (await tensor.data()) as Uint16Array;
  const rows = new Set<string>();
  for (let at = 0; at < stored.length; at += 80) {
    rows.add(Buffer.from(stored.buffer, stored.byteOffset + 2 * at, 2 * 80).toString("latin1"));
  }
  expect(rows.size).toBe(2 ** 17 + 3);
});
