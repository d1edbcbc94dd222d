import { DeviceError } from "@moba-js/tensor";
import fc from "fast-check";
import { expect, it } from "vitest";
import { type Block, MemoryPool, sizeClass } from "../src/memory-pool.js";

/** Memory of so many bytes, and what is taken from it. */
function limitedMemory(capacity: number) {
  const taken = new Map<number, number>();
  let next = 512;
  const used = () => [...taken.values()].reduce((sum, bytes) => sum + bytes, 0);
  return {
    taken,
    used,
    source: {
      allocate(byteLength: number): Block | undefined {
        if (used() + byteLength > capacity) return undefined;
        const pointer = next;
        next += byteLength;
        taken.set(pointer, byteLength);
        return { pointer, byteLength };
      },
      free(blocks: readonly Block[]) {
        for (const { pointer, byteLength } of blocks) {
          expect(taken.get(pointer)).toBe(byteLength);
          taken.delete(pointer);
        }
      },
    },
  };
}

it("rounds sizes up to multiples of 512: below 8 MiB to powers of two, beyond by at most a sixteenth", () => {
  const size = fc.integer({ min: 1, max: 2 ** 40 });
  fc.assert(
    fc.property(size, (byteLength) => {
      const rounded = sizeClass(byteLength);
      expect(rounded).toBeGreaterThanOrEqual(byteLength);
      expect(rounded % 512).toBe(0);
      if (byteLength < 2 ** 23) expect(Math.log2(rounded) % 1).toBe(0);
      expect(rounded).toBeLessThan(byteLength + Math.max(512, byteLength / (byteLength < 2 ** 23 ? 1 : 16)));
      expect(sizeClass(rounded)).toBe(rounded);
    }),
  );
  const pair = fc.tuple(size, size).map(([a, b]) => [Math.min(a, b), Math.max(a, b)]);
  fc.assert(fc.property(pair, ([a, b]) => sizeClass(a) <= sizeClass(b)));
});

it("hands out disjoint blocks within its limits, keeps its books, and gives everything back", () => {
  const steps = fc.array(
    fc.oneof(
      fc.record({ take: fc.integer({ min: 0, max: 40_000 }) }),
      fc.record({ give: fc.nat() }),
      fc.constant({ release: true }),
    ),
    { maxLength: 60 },
  );
  const limits = fc.record({
    capacity: fc.integer({ min: 512, max: 200_000 }),
    maxBytes: fc.integer({ min: 512, max: 200_000 }),
  });
  fc.assert(
    fc.property(steps, limits, (run, { capacity, maxBytes }) => {
      const memory = limitedMemory(capacity);
      const pool = new MemoryPool(memory.source, maxBytes);
      const live: Block[] = [];
      let peak = 0;
      for (const step of run) {
        if ("take" in step) {
          try {
            const block = pool.take(step.take);
            expect(block.byteLength).toBeGreaterThanOrEqual(step.take);
            live.push(block);
          } catch (error) {
            // Only when it would not have fitted, even with nothing cached.
            expect(error).toBeInstanceOf(DeviceError);
            const used = live.reduce((sum, { byteLength }) => sum + byteLength, 0);
            expect(used + sizeClass(step.take)).toBeGreaterThan(Math.min(capacity, maxBytes));
            expect(pool.report().cachedBytes).toBe(0);
          }
        } else if ("give" in step) {
          if (live.length > 0) pool.give(live.splice(step.give % live.length, 1)[0]);
        } else {
          pool.release();
        }
        const used = live.reduce((sum, { byteLength }) => sum + byteLength, 0);
        peak = Math.max(peak, used);
        const { usedBytes, cachedBytes, peakUsedBytes } = pool.report();
        expect({ usedBytes, peakUsedBytes }).toEqual({ usedBytes: used, peakUsedBytes: peak });
        expect(usedBytes + cachedBytes).toBe(memory.used());
        expect(memory.used()).toBeLessThanOrEqual(Math.min(capacity, maxBytes));
        const pointers = live.filter(({ byteLength }) => byteLength > 0).map(({ pointer }) => pointer);
        expect(new Set(pointers).size).toBe(pointers.length);
      }
      pool.close();
      for (const block of live) pool.give(block);
      expect(memory.taken.size).toBe(0);
    }),
    { numRuns: 300 },
  );
});

it("reuses a block of the same or a slightly larger size, and no much larger one", () => {
  const pool = new MemoryPool(limitedMemory(2 ** 30).source);
  const first = pool.take(100_000_000);
  pool.give(first);
  expect(pool.take(95_000_000).pointer).toBe(first.pointer);
  pool.give(first);
  expect(pool.take(50_000_000).pointer).not.toBe(first.pointer);
});

it("serves a pool within a pool, that gives back what outlives it", () => {
  const memory = limitedMemory(2 ** 20);
  const outer = new MemoryPool(memory.source);
  const warm = outer.take(10_000);
  outer.give(warm);
  const inner = new MemoryPool({
    allocate: (byteLength) => outer.take(byteLength),
    free: (blocks) => {
      for (const block of blocks) outer.give(block);
    },
  });
  const [a, b] = [inner.take(9_900), inner.take(5_000)];
  expect(a.pointer).toBe(warm.pointer);
  inner.give(a);
  expect(outer.report().usedBytes).toBe(a.byteLength + b.byteLength);
  inner.close();
  expect(outer.report().usedBytes).toBe(b.byteLength);
  inner.give(b);
  expect(outer.report().usedBytes).toBe(0);
  outer.close();
  expect(memory.taken.size).toBe(0);
});

it("says how much was asked for, in use and cached", () => {
  const pool = new MemoryPool(limitedMemory(4096).source, 8192);
  pool.take(1024);
  pool.give(pool.take(512));
  expect(() => pool.take(5000)).toThrow(
    "cuda: CUDA_ERROR_OUT_OF_MEMORY: no memory for 5000 bytes (1024 in use, 512 were cached and given back, maxBytes is 8192)",
  );
});
