import { expect, it } from "vitest";
import { Constants, LASTING, PASSING } from "../src/constants.js";
import { MemoryPool } from "../src/memory-pool.js";

/** Constants in memory without end, and the values that lie at each address. */
function constantsIn(limits: typeof PASSING) {
  const uploaded = new Map<number, number[]>();
  let [next, uploads] = [512, 0];
  const pool = new MemoryPool({
    allocate: (byteLength) => {
      next += byteLength;
      return { pointer: next - byteLength, byteLength };
    },
    free: () => {},
  });
  const upload = (pointer: number, values: Int32Array) => {
    uploaded.set(pointer, [...values]);
    uploads += 1;
  };
  return { pool, uploaded, constants: new Constants(pool, upload, limits), uploads: () => uploads };
}

it("keeps one copy of the same values, and no memory for none", () => {
  const { constants, uploaded, uploads } = constantsIn(LASTING);
  const values = Int32Array.of(3, -1, 7);
  const pointer = constants.pointerOf(values);
  values[0] = 4;
  expect(constants.pointerOf(Int32Array.of(3, -1, 7))).toBe(pointer);
  expect(constants.pointerOf(values)).not.toBe(pointer);
  expect(constants.pointerOf(new Int32Array(0))).toBe(0);
  expect(uploaded.get(pointer)).toEqual([3, -1, 7]);
  expect(uploads()).toBe(2);
});

it("tells values apart that have the same hash", () => {
  const { constants, uploaded } = constantsIn(LASTING);
  const long = Int32Array.of(5, 7);
  const short = Int32Array.of(Math.imul(2 ^ 5, 0x01000193) ^ 7 ^ 1);
  for (const values of [long, short, long, short]) {
    expect(uploaded.get(constants.pointerOf(values))).toEqual([...values]);
  }
  expect(uploaded.size).toBe(2);
});

it("drops those not used for longest, and gives all back in the end", () => {
  const { constants, pool, uploads } = constantsIn({ ...PASSING, most: 40 });
  const ask = (i: number) => constants.pointerOf(Int32Array.of(i));
  for (let i = 0; i < 60; i++) {
    ask(i);
    ask(0);
  }
  expect(uploads()).toBe(60);
  expect(pool.report().usedBytes).toBe(40 * 512);
  ask(0);
  ask(59);
  expect(uploads()).toBe(60);
  ask(1);
  expect(uploads()).toBe(61);
  constants.clear();
  expect(pool.report().usedBytes).toBe(0);
});
