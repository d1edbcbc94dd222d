import { ReferenceBackend } from "@moba-js/reference";
import type { Tensor } from "@moba-js/tensor";
import { describe, expect, it } from "vitest";
import { generator } from "../src/random.js";
import { RandomSequences } from "../src/random-sequences.js";

const seed = Math.floor(Math.random() * 2 ** 31);
console.log(`random sequences: seed ${seed}`);
const backend = new ReferenceBackend();

describe.each([
  { sequences: 3, tokens: 50, heads: 2, headDim: 8 }, // fully random
  { sequences: 3, tokens: 200, heads: 64, headDim: 1024 }, // more values than are drawn
])("$sequences sequences of $tokens tokens, [$heads, $headDim]", ({ sequences, tokens, heads, headDim }) => {
  const width = heads * headDim;
  const random = generator("random sequences", seed);
  const made = new RandomSequences(backend, random, { sequences, tokens, heads, headDim, dtype: "f32" });

  it("fills every row, and leaves room behind each sequence", async () => {
    using packed = made.packed([2, 0], 1);
    const values = await packed.values();
    expect(packed.shape).toEqual([2 * (tokens + 1), heads, headDim]);
    for (let row = 0; row < 2 * (tokens + 1); row++) {
      const isZero = values.subarray(row * width, (row + 1) * width).every((x) => x === 0);
      expect(isZero, `row ${row}`).toBe(row % (tokens + 1) === tokens);
    }
  });

  it("gives the same sequences each time, and different ones", async () => {
    using both = made.packed([1, 2], 0);
    using one = made.packed([2], 0);
    const bytes = async (tensor: Tensor, begin: number) =>
      Buffer.from((await tensor.data()).slice(begin * width, (begin + tokens) * width).buffer);
    const second = await bytes(both, tokens);
    expect(second.equals(await bytes(one, 0))).toBe(true);
    expect(second.equals(await bytes(both, 0))).toBe(false);
  });
});
