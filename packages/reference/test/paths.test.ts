import { describe, expect, it } from "vitest";
import {
  type AttentionInputs,
  attendBlocks,
  attendBlocksBackward,
  attendSlots,
  attendSlotsBackward,
  attendTwoStreams,
  denseAttention,
  keyConv,
  keyConvBackward,
  routeBlocks,
  windowAttention,
} from "../src/index.js";
import { denseRange, rangeAttention, windowRange } from "../src/paths/range-attention.js";
import { EDGE_CASES, freshSeed, maxDifference, Random, randomInputs } from "./random.js";

const seed = freshSeed();
console.log(`reference paths: seed ${seed}`);

/** `Σ x·y`. */
const inner = (x: Float64Array, y: Float64Array): number => x.reduce((sum, a, i) => sum + a * y[i], 0);

/** Central differences of `f` at `x`, one element after the other. */
function finiteDifferences(x: Float64Array, f: (x: Float64Array) => number): Float64Array {
  const h = 1e-5;
  return x.map((value, i) => {
    const moved = (by: number) => f(x.with(i, value + by));
    return (moved(h) - moved(-h)) / (2 * h);
  });
}

function relativeError(x: Float64Array, ref: Float64Array): number {
  const norm = Math.sqrt(inner(ref, ref));
  const difference = x.map((a, i) => a - ref[i]);
  return norm === 0 ? maxDifference(x, ref) : Math.sqrt(inner(difference, difference)) / norm;
}

describe.each(Object.entries(EDGE_CASES))("%s", (name, choice) => {
  const random = new Random(seed + name.length);

  it("masked dense, two streams and slot plan agree to 1e-9", () => {
    for (let round = 0; round < 25; round++) {
      const inputs = randomInputs(random, choice);
      const routed = { ...inputs, routing: routeBlocks(inputs) };
      const masked = attendBlocks(routed);
      const inWaves = attendSlots(routed, 100);
      for (const other of [attendTwoStreams(routed), attendSlots(routed), inWaves]) {
        expect(maxDifference(masked.out, other.out), `round ${round}`).toBeLessThan(1e-9);
        expect(maxDifference(masked.lse, other.lse), `round ${round}`).toBeLessThan(1e-9);
      }
    }
  });

  it("gradients by definition, slot plan and finite differences agree to 1e-6", () => {
    for (let round = 0; round < 2; round++) {
      const inputs = randomInputs(random, { headDim: random.int(1, 3), ...choice }, 20);
      const routed = { ...inputs, routing: routeBlocks(inputs) };
      const dOut = random.gaussians(inputs.q.length);
      const defined = attendBlocksBackward({ ...routed, dOut });
      const blocked = attendSlotsBackward({ ...routed, ...attendSlots(routed), dOut });
      const loss = (changed: Partial<AttentionInputs>) =>
        inner(attendBlocks({ ...routed, ...changed }).out, dOut);
      const numeric = {
        dq: finiteDifferences(inputs.q, (q) => loss({ q })),
        dk: finiteDifferences(inputs.k, (k) => loss({ k })),
        dv: finiteDifferences(inputs.v, (v) => loss({ v })),
      };
      for (const name of ["dq", "dk", "dv"] as const) {
        expect(maxDifference(defined[name], blocked[name]), `${name}, round ${round}`).toBeLessThan(1e-9);
        expect(relativeError(numeric[name], defined[name]), `${name}, round ${round}`).toBeLessThan(1e-6);
      }
    }
  });
});

describe("forward paths", () => {
  it("agree when a whole block scores −Infinity", () => {
    const shape = { heads: 1, kvHeads: 1, headDim: 1, scale: 1 };
    const cuSeqlens = Int32Array.of(0, 4);
    const k = Float64Array.of(0, 0, Number.NEGATIVE_INFINITY, 0);
    const routing = {
      indices: Int32Array.of(0, -1, 0, -1, 0, 1, 0, 1),
      slots: 2,
      blockSize: 2,
      causal: true,
    };
    const q = Float64Array.of(1, 1, 1, 1);
    const v = Float64Array.of(1, 2, 3, 4);
    const inputs = { ...shape, cuSeqlens, cuSeqlensK: cuSeqlens, q, k, v, routing };
    for (const path of [attendBlocks, attendTwoStreams, attendSlots]) {
      const { out, lse } = path(inputs);
      expect(maxDifference(out, Float64Array.of(1, 1.5, 1.5, 7 / 3)), path.name).toBeLessThan(1e-12);
      expect(lse[2], path.name).toBeCloseTo(Math.log(2), 12);
    }
  });

  it("is dense attention when k ≥ n", () => {
    const random = new Random(seed + 1);
    for (let round = 0; round < 100; round++) {
      const inputs = { ...randomInputs(random), topK: 1000 };
      const dense = denseAttention(inputs);
      const moba = attendSlots({ ...inputs, routing: routeBlocks(inputs) });
      expect(maxDifference(dense.out, moba.out), `round ${round}`).toBeLessThan(1e-9);
      expect(maxDifference(dense.lse, moba.lse), `round ${round}`).toBeLessThan(1e-9);
    }
  });

  it("blocked dense and window attention agree with the definition to 1e-9", () => {
    const random = new Random(seed + 2);
    for (let round = 0; round < 200; round++) {
      const inputs = randomInputs(random);
      const window = random.pick([1, 3, 16, 17, 50, 500]);
      const pairs = [
        [denseAttention(inputs), rangeAttention(inputs, denseRange(inputs.causal))],
        [windowAttention({ ...inputs, window }), rangeAttention(inputs, windowRange(window))],
      ] as const;
      for (const [defined, blocked] of pairs) {
        expect(maxDifference(defined.out, blocked.out), `round ${round}`).toBeLessThan(1e-9);
        expect(maxDifference(defined.lse, blocked.lse), `round ${round}`).toBeLessThan(1e-9);
      }
    }
  });
});

describe("routing", () => {
  it("chooses, by brute force over sorted scores, what the definition says", () => {
    const random = new Random(seed + 3);
    for (let round = 0; round < 100; round++) {
      // Small integers make equal scores common, and means of 1 or 8 of them are exact.
      const lengths = [random.pick([1, 8, 40, 64]), random.pick([0, 8, 80])];
      const keyLengths = [random.pick([8, 40, 64]), random.pick([0, 8, 80])];
      const inputs = randomInputs(random, { lengths, keyLengths, blockSize: random.pick([1, 8]) });
      const whole = (x: Float64Array) => x.map(Math.round);
      const problem = { ...inputs, q: whole(inputs.q), k: whole(inputs.k) };
      const { indices, slots } = routeBlocks(problem);
      const { heads, kvHeads, headDim, cuSeqlens, cuSeqlensK, blockSize, topK, causal } = problem;
      for (let s = 0; s + 1 < cuSeqlens.length; s++) {
        const keys = cuSeqlensK[s + 1] - cuSeqlensK[s];
        for (let query = cuSeqlens[s]; query < cuSeqlens[s + 1]; query++) {
          const position = query - cuSeqlens[s + 1] + keys;
          const own = Math.floor(position / blockSize);
          for (let head = 0; head < heads; head++) {
            const candidates = [];
            for (let block = 0; block < (causal ? own : Math.ceil(keys / blockSize)); block++) {
              const members = [];
              for (let t = block * blockSize; t < Math.min(keys, (block + 1) * blockSize); t++)
                members.push(t);
              let score = 0;
              for (let c = 0; c < headDim; c++) {
                const channel = Math.floor((head * kvHeads) / heads) * headDim + c;
                const sum = members.reduce(
                  (total, t) => total + problem.k[(cuSeqlensK[s] + t) * kvHeads * headDim + channel],
                  0,
                );
                score += problem.q[(query * heads + head) * headDim + c] * (sum / members.length);
              }
              candidates.push({ block, score });
            }
            candidates.sort((a, b) =>
              Math.abs(a.score - b.score) < 1e-12 ? a.block - b.block : b.score - a.score,
            );
            const chosen = candidates.slice(0, causal ? topK - 1 : topK).map(({ block }) => block);
            if (causal && own >= 0) chosen.push(own);
            const row = [
              ...indices.subarray((query * heads + head) * slots, (query * heads + head + 1) * slots),
            ];
            const expected = chosen.sort((a, b) => a - b);
            expect(row.filter((block) => block >= 0)).toEqual(causal && own < 0 ? [] : expected);
          }
        }
      }
    }
  });
});

describe("gradients", () => {
  it("of the key convolution agree with finite differences to 1e-6", () => {
    const random = new Random(seed + 5);
    for (let round = 0; round < 60; round++) {
      const { k, kvHeads, headDim, cuSeqlensK: cuSeqlens } = randomInputs(random);
      if (k.length === 0 || k.length > 700) continue;
      const width = random.pick([1, 2, 3, 5, 70]);
      const weights = random.gaussians(width * kvHeads * headDim);
      const dOut = random.gaussians(k.length);
      const problem = { k, weights, width, kvHeads, headDim, cuSeqlens };
      const { dk, dWeights } = keyConvBackward({ ...problem, dOut });
      const loss = (changed: object) => inner(keyConv({ ...problem, ...changed }), dOut);
      expect(
        relativeError(
          dk,
          finiteDifferences(k, (x) => loss({ k: x })),
        ),
      ).toBeLessThan(1e-6);
      expect(
        relativeError(
          dWeights,
          finiteDifferences(weights, (x) => loss({ weights: x })),
        ),
      ).toBeLessThan(1e-6);
    }
  });
});

describe("speed", () => {
  it("runs MoBA forward over 16K tokens × 4 heads of 64 in seconds (B 128, k 8)", () => {
    const random = new Random(seed + 6);
    const shape = { heads: 4, kvHeads: 4, headDim: 64 };
    const cuSeqlens = Int32Array.of(0, 16384);
    const [q, k, v] = [1, 2, 3].map(() => random.gaussians(16384 * 4 * 64));
    const inputs = { ...shape, q, k, v, cuSeqlens, cuSeqlensK: cuSeqlens, scale: 1 / 8 };
    const start = performance.now();
    const routing = routeBlocks({ ...inputs, blockSize: 128, topK: 8, causal: true });
    const routed = performance.now();
    const { lse } = attendSlots({ ...inputs, routing });
    const done = performance.now();
    console.log(`route ${(routed - start).toFixed(0)} ms, attend ${(done - routed).toFixed(0)} ms`);
    expect(lse.every(Number.isFinite)).toBe(true);
    expect(done - start).toBeLessThan(30_000);
  });
});
