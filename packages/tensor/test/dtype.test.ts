import { describe, expect, it } from "vitest";
import {
  ArgumentError,
  decode,
  encode,
  fromBF16Bits,
  fromF16Bits,
  roundTo,
  toBF16Bits,
  toF16Bits,
} from "../src/index.js";

const formats = {
  f16: { to: toF16Bits, from: fromF16Bits, infinity: 0x7c00 },
  bf16: { to: toBF16Bits, from: fromBF16Bits, infinity: 0x7f80 },
};

/** The float64 next to a positive finite `x`, up (+1) or down (−1). */
function neighbour(x: number, direction: 1 | -1): number {
  const bits = new BigInt64Array(new Float64Array([x]).buffer);
  bits[0] += BigInt(direction);
  return new Float64Array(bits.buffer)[0];
}

describe.each(Object.entries(formats))("%s", (_, { to, from, infinity }) => {
  it("keeps every value, and every NaN a NaN", () => {
    for (let bits = 0; bits < 65536; bits++) {
      const value = from(bits);
      if (Number.isNaN(value)) expect(from(to(value))).toBeNaN();
      else expect(to(value)).toBe(bits);
    }
    expect(Object.is(from(0x8000), -0)).toBe(true);
  });

  it("rounds to the nearest, ties to even, from float64, between every two neighbours", () => {
    for (let bits = 0; bits < infinity; bits++) {
      const low = from(bits);
      // Past the largest finite value, rounding behaves as if one more binade followed.
      const high = bits + 1 === infinity ? 2 * low - from(bits - 1) : from(bits + 1);
      const middle = (low + high) / 2;
      expect(to(middle)).toBe(bits % 2 === 0 ? bits : bits + 1);
      expect(to(neighbour(middle, -1))).toBe(bits);
      expect(to(neighbour(middle, 1))).toBe(bits + 1);
      expect(to(-middle)).toBe(0x8000 | (bits % 2 === 0 ? bits : bits + 1));
    }
  });

  it("overflows to infinity and keeps infinities", () => {
    expect(to(1e300)).toBe(infinity);
    expect(to(Number.NEGATIVE_INFINITY)).toBe(0x8000 | infinity);
    expect(to(5e-324)).toBe(0);
  });
});

describe("known values", () => {
  it("of binary16 and bfloat16", () => {
    expect(toF16Bits(1 / 3)).toBe(0x3555);
    expect(toF16Bits(65504)).toBe(0x7bff);
    expect(toF16Bits(2 ** -24)).toBe(1);
    expect(toF16Bits(2 ** -25)).toBe(0);
    expect(toF16Bits(65520)).toBe(0x7c00);
    expect(toBF16Bits(1 / 3)).toBe(0x3eab);
    expect(toBF16Bits(3.3895313892515355e38)).toBe(0x7f7f);
    expect(roundTo("bf16", 1.00390625)).toBe(1); // halfway from 1 to 1 + 2^-7
    expect(roundTo("f32", 0.1)).toBe(Math.fround(0.1));
  });
});

describe("encode and decode", () => {
  it("round-trip arrays of each dtype", () => {
    const values = [0, -1.5, 2 ** -24, 1000];
    for (const dtype of ["f32", "f16"] as const)
      expect([...decode(encode(values, dtype), dtype)]).toEqual(values);
    expect([...decode(encode([0, -1.5, 1000], "bf16"), "bf16")]).toEqual([0, -1.5, 1000]);
    expect([...decode(encode([-(2 ** 31), 2 ** 31 - 1], "i32"), "i32")]).toEqual([-(2 ** 31), 2 ** 31 - 1]);
    expect([...decode(encode([0, 2 ** 32 - 1], "u32"), "u32")]).toEqual([0, 2 ** 32 - 1]);
  });

  it.each([
    ["i32", 0.5],
    ["i32", 2 ** 31],
    ["i32", Number.NaN],
    ["u32", -1],
    ["u32", 2 ** 32],
  ] as const)("%s refuses %d, naming the element", (dtype, value) => {
    expect(() => encode([0, value], dtype)).toThrow(ArgumentError);
    expect(() => encode([0, value], dtype)).toThrow("data[1]");
  });
});
