import { cuSeqlensFromLengths, type Tensor } from "@moba-js/tensor";
import { describe, expect, it } from "vitest";
import {
  adamw,
  attendBlocksBackward,
  centroids,
  denseAttention,
  denseAttentionBackward,
  matmul,
  ReferenceBackend,
  routeBlocks,
  windowAttention,
  windowAttentionBackward,
} from "../src/index.js";
import { matmulTiled } from "../src/paths/matmul.js";
import { denseRange, rangeAttentionBackward, windowRange } from "../src/paths/range-attention.js";
import { exactBackend, finiteDifferences, type Input, inner, relativeError } from "./finite-differences.js";
import { EDGE_CASES, freshSeed, maxDifference, Random, randomInputs } from "./random.js";

const seed = freshSeed();
console.log(`neural operations: seed ${seed}`);

/** Standard normal float32 values. */
const gaussian = (random: Random, shape: readonly number[]): Input => ({
  values: random.gaussians(shape.reduce((a, b) => a * b, 1)).map(Math.fround),
  shape,
});

/** An operation with its backward, for a finite-difference check of `Σ dOut · forward(inputs)`. */
interface Differentiable {
  readonly inputs: readonly Input[];
  forward(backend: ReferenceBackend, tensors: Tensor[]): Tensor;
  backward(backend: ReferenceBackend, dOut: Tensor, tensors: Tensor[]): Tensor[];
}

async function checkGradients({ inputs, forward, backward }: Differentiable): Promise<void> {
  const backend = exactBackend();
  const tensors = inputs.map(({ values, shape }) => backend.tensor(values, shape));
  const shape = forward(backend, tensors).shape;
  const dOut = gaussian(new Random(seed), shape);
  const loss = async (changed: Tensor[]) => {
    using out = forward(backend, changed);
    return inner(await out.values(), dOut.values);
  };
  const numeric = await finiteDifferences(backend, inputs, loss);
  const gradients = backward(backend, backend.tensor(dOut.values, shape), tensors);
  for (const [i, gradient] of gradients.entries()) {
    expect(gradient.shape).toEqual(inputs[i].shape);
    expect(relativeError(numeric[i], await gradient.values()), `input ${i}`).toBeLessThan(1e-6);
  }
}

describe("gradients agree with finite differences to 1e-6", () => {
  const random = new Random(seed);
  const int = (backend: ReferenceBackend, values: readonly number[]) =>
    backend.tensor(values, [values.length], "i32");

  it.each([
    [false, false],
    [false, true],
    [true, false],
    [true, true],
  ])("of matmul, transposed %s %s", async (transposeA, transposeB) => {
    const [m, n, k] = [random.int(1, 6), random.int(1, 6), random.int(1, 6)];
    await checkGradients({
      inputs: [
        gaussian(random, transposeA ? [k, m] : [m, k]),
        gaussian(random, transposeB ? [n, k] : [k, n]),
      ],
      forward: (backend, [a, b]) => backend.matmul(a, b, { transposeA, transposeB }),
      // dA = dC Bᵀ, dB = Aᵀ dC; transposed factors give the transposed gradients.
      backward: (backend, dC, [a, b]) => [
        transposeA
          ? backend.matmul(b, dC, { transposeA: transposeB, transposeB: true })
          : backend.matmul(dC, b, { transposeB: !transposeB }),
        transposeB
          ? backend.matmul(dC, a, { transposeA: true, transposeB: transposeA })
          : backend.matmul(a, dC, { transposeA: !transposeA }),
      ],
    });
  });

  it("of embedding, with repeated and missing indices", () =>
    checkGradients({
      inputs: [gaussian(random, [5, 3])],
      forward: (backend, [table]) => backend.embedding(table, int(backend, [4, 0, 4, -1, 9])),
      backward: (backend, dOut) => [backend.embeddingBackward(dOut, int(backend, [4, 0, 4, -1, 9]), 5)],
    }));

  it("of rmsNorm", () =>
    checkGradients({
      inputs: [gaussian(random, [4, 7]), gaussian(random, [7])],
      forward: (backend, [x, weight]) => backend.rmsNorm(x, weight, { epsilon: 0.01 }),
      backward: (backend, dOut, [x, weight]) => {
        const { dx, dWeight } = backend.rmsNormBackward(dOut, x, weight, { epsilon: 0.01 });
        return [dx, dWeight];
      },
    }));

  it("of swiglu", () =>
    checkGradients({
      inputs: [gaussian(random, [4, 7]), gaussian(random, [4, 7])],
      forward: (backend, [gate, up]) => backend.swiglu(gate, up),
      backward: (backend, dOut, [gate, up]) => {
        const { dGate, dUp } = backend.swigluBackward(dOut, gate, up);
        return [dGate, dUp];
      },
    }));

  it("of rope", () =>
    checkGradients({
      inputs: [gaussian(random, [3, 2, 6])],
      forward: (backend, [x]) => backend.rope(x, int(backend, [0, 7, 1000]), { base: 50 }),
      backward: (backend, dOut) => [
        backend.rope(dOut, int(backend, [0, 7, 1000]), { base: 50, inverse: true }),
      ],
    }));

  it("of crossEntropy, with ignored targets", () =>
    checkGradients({
      inputs: [gaussian(random, [5, 9])],
      forward: (backend, [logits]) => backend.crossEntropy(logits, int(backend, [8, -1, 0, 3, 77])).loss,
      backward: (backend, dLoss, [logits]) => {
        const targets = int(backend, [8, -1, 0, 3, 77]);
        const { lse } = backend.crossEntropy(logits, targets);
        return [backend.crossEntropyBackward(dLoss, logits, targets, lse)];
      },
    }));

  it("of dense and sliding-window attention, packed, grouped, cross lengths", async () => {
    for (let round = 0; round < 3; round++) {
      const problem = randomInputs(random, {
        headDim: random.int(1, 3),
        lengths: [6, 0, 3],
        keyLengths: [6, 2, 7],
      });
      const { heads, kvHeads, headDim, cuSeqlens, cuSeqlensK, scale, causal } = problem;
      const keys = [cuSeqlensK[3], kvHeads, headDim];
      const inputs = [[cuSeqlens[3], heads, headDim], keys, keys].map((shape) => gaussian(random, shape));
      const options = { cuSeqlens, cuSeqlensK, scale };
      const window = random.int(1, 5);
      await checkGradients({
        inputs,
        forward: (backend, [q, k, v]) => backend.attention(q, k, v, { ...options, causal }).out,
        backward: (backend, dOut, [q, k, v]) => {
          const { out, lse } = backend.attention(q, k, v, { ...options, causal });
          const { dq, dk, dv } = backend.attentionBackward(dOut, q, k, v, out, lse, { ...options, causal });
          return [dq, dk, dv];
        },
      });
      await checkGradients({
        inputs,
        forward: (backend, [q, k, v]) => backend.windowAttention(q, k, v, { ...options, window }).out,
        backward: (backend, dOut, [q, k, v]) => {
          const { out, lse } = backend.windowAttention(q, k, v, { ...options, window });
          const { dq, dk, dv } = backend.windowAttentionBackward(dOut, q, k, v, out, lse, {
            ...options,
            window,
          });
          return [dq, dk, dv];
        },
      });
    }
  });
});

describe.each(Object.entries(EDGE_CASES))("attention backward, blocked: %s", (name, choice) => {
  it("agrees with the definition to 1e-9", () => {
    const random = new Random(seed + name.length);
    for (let round = 0; round < 10; round++) {
      const inputs = randomInputs(random, choice);
      const window = random.pick([1, 3, 16, 17, 50, 500]);
      const dOut = random.gaussians(inputs.q.length);
      const dense = denseAttention(inputs);
      const windowed = windowAttention({ ...inputs, window });
      const pairs = [
        [
          denseAttentionBackward({ ...inputs, dOut }),
          rangeAttentionBackward({ ...inputs, ...dense, dOut }, denseRange(inputs.causal)),
        ],
        [
          windowAttentionBackward({ ...inputs, dOut, window }),
          rangeAttentionBackward({ ...inputs, ...windowed, dOut }, windowRange(window)),
        ],
      ] as const;
      for (const [defined, blocked] of pairs) {
        for (const gradient of ["dq", "dk", "dv"] as const) {
          expect(maxDifference(defined[gradient], blocked[gradient]), `round ${round}`).toBeLessThan(1e-9);
        }
      }
    }
  });
});

it("attention over all blocks has the gradients of dense attention", () => {
  const inputs = { ...randomInputs(new Random(seed + 1), { causal: true }), topK: 1000 };
  const dOut = new Random(seed).gaussians(inputs.q.length);
  const routed = attendBlocksBackward({ ...inputs, routing: routeBlocks(inputs), dOut });
  const dense = denseAttentionBackward({ ...inputs, dOut });
  expect(maxDifference(routed.dk, dense.dk)).toBeLessThan(1e-9);
});

describe("matmul, tiled", () => {
  it("agrees with the definition for any shape", () => {
    const random = new Random(seed + 2);
    for (let round = 0; round < 100; round++) {
      const [rows, inner, columns] = [1, 2, 3].map(() => random.pick([0, 1, 2, 3, 5, 16, 33]));
      const [a, b] = [random.gaussians(rows * inner), random.gaussians(inner * columns)];
      const shape = { rows, inner, columns };
      const tiled = matmulTiled(a, b, { ...shape, transposeA: false, transposeB: false });
      expect(maxDifference(tiled, matmul(a, b, shape)), JSON.stringify(shape)).toBeLessThan(1e-9);
    }
  });

  it("reaches 1.5 GFLOP/s in float32, transposed or not", async () => {
    const backend = new ReferenceBackend();
    const x = backend.zeros([512, 512]);
    for (const transposed of [false, true]) {
      const options = { transposeA: transposed, transposeB: transposed };
      backend.matmul(x, x, options).dispose();
      const times = [];
      for (let i = 0; i < 5; i++)
        times.push(await backend.time(() => backend.matmul(x, x, options).dispose()));
      const rate = (2 * 512 ** 3) / Math.min(...times) / 1e6;
      console.log(`matmul 512³${transposed ? ", both transposed" : ""}: ${rate.toFixed(2)} GFLOP/s`);
      expect(rate).toBeGreaterThan(1.5);
    }
  });
});

describe("rope", () => {
  it("makes products depend on the distance of positions only", async () => {
    const backend = exactBackend();
    const random = new Random(seed + 3);
    const [q, k] = [1, 2].map(() => gaussian(random, [1, 1, 8]));
    const product = async (tq: number, tk: number) => {
      const at = ({ values, shape }: Input, t: number) =>
        backend.rope(backend.tensor(values, shape), backend.tensor([t], [1], "i32")).values();
      return inner(await at(q, tq), await at(k, tk));
    };
    expect(await product(105, 102)).toBeCloseTo(await product(3, 0), 10);
    expect(await product(0, 0)).toBeCloseTo(inner(q.values, k.values), 10);
    expect(Math.abs((await product(9, 0)) - (await product(0, 0)))).toBeGreaterThan(1e-3);
  });
});

describe("adamw", () => {
  const options = { beta1: 0.9, beta2: 0.99, epsilon: 0 };

  it("steps by the sign of the first gradient, and decays by the rate", () => {
    const state = { m: new Float64Array(3), v: new Float64Array(3) };
    const parameter = Float64Array.of(1, -2, 3);
    const inputs = { parameter, gradient: Float64Array.of(5, -7, 1e-3), ...state, weightDecay: 0.5 };
    const norm = adamw({ parameters: [inputs], step: 1, learningRate: 0.1, ...options, clipNorm: 1 });
    expect(norm).toBeCloseTo(Math.hypot(5, 7, 1e-3), 12);
    expect(
      maxDifference(parameter, Float64Array.of(1 - 0.1 - 0.05, -2 + 0.1 + 0.1, 3 - 0.1 - 0.15)),
    ).toBeLessThan(1e-12);
  });

  it("clips by the norm of all gradients together", () => {
    const parameters = [3, 4].map((g) => ({
      ...{ parameter: new Float64Array(1), gradient: Float64Array.of(g), weightDecay: 0 },
      ...{ m: new Float64Array(1), v: new Float64Array(1) },
    }));
    expect(adamw({ parameters, step: 1, learningRate: 0.1, ...options, clipNorm: 1 })).toBe(5);
    expect(parameters[0].m[0]).toBeCloseTo(0.1 * (3 / 5), 12);
    expect(parameters[1].m[0]).toBeCloseTo(0.1 * (4 / 5), 12);
  });

  it("holds the float32 moments of a run by the definition", async () => {
    const backend = exactBackend();
    const random = new Random(seed + 4);
    const start = gaussian(random, [6]);
    const parameter = backend.tensor(start.values, [6]);
    const state = { m: backend.zeros([6]), v: backend.zeros([6]) };
    const norm = backend.zeros([]);
    const gradients = [1, 2, 3, 4].map(() => gaussian(random, [6]));
    for (const [i, { values }] of gradients.entries()) {
      const gradient = backend.tensor(values, [6]);
      backend.adamw([{ parameter, gradient, ...state }], backend.tensor([i + 1, 0.01], [2]), norm);
      expect((await norm.values())[0]).toBeCloseTo(Math.hypot(...values), 12);
    }
    // m_t = (1 − β₁) Σ_i β₁^(t−i) g_i, and so v.
    const mean = (beta: number, power: number) =>
      start.values.map((_, e) =>
        gradients.reduce((sum, { values }, i) => sum + (1 - beta) * beta ** (3 - i) * values[e] ** power, 0),
      );
    expect(maxDifference(await state.m.values(), mean(0.9, 1))).toBeLessThan(1e-12);
    expect(maxDifference(await state.v.values(), mean(0.95, 2))).toBeLessThan(1e-12);
    const p = await parameter.values();
    expect(p.every((x, i) => x !== start.values[i] && Math.abs(x - start.values[i]) < 0.05)).toBe(true);
  });
});

describe("a cache", () => {
  it("grown in pieces holds the keys, centroids and routing of the whole", async () => {
    const backend = new ReferenceBackend();
    const random = new Random(seed + 5);
    for (let round = 0; round < 30; round++) {
      const { kvHeads, heads, headDim, blockSize } = randomInputs(random);
      const lengths = [random.int(0, 70), random.int(1, 70)];
      const rooms = Math.ceil(70 / blockSize);
      const capacity = rooms * blockSize;
      const whole = lengths.map((length) => gaussian(random, [length, kvHeads, headDim]).values);
      const keys = backend.tensor(new Float32Array(2 * capacity * kvHeads * headDim).fill(Number.NaN), [
        2 * capacity,
        kvHeads,
        headDim,
      ]);
      const means = backend.tensor(new Float32Array(2 * rooms * kvHeads * headDim).fill(Number.NaN), [
        2 * rooms,
        kvHeads,
        headDim,
      ]);
      const cuCentroids = [0, rooms, 2 * rooms];
      const used = [0, 0];
      while (used.some((n, s) => n < lengths[s])) {
        const counts = lengths.map((length, s) => Math.min(length - used[s], random.int(0, 20)));
        const pieces = whole.map((values, s) => {
          const width = kvHeads * headDim;
          return values.subarray(used[s] * width, (used[s] + counts[s]) * width);
        });
        const piece = backend.tensor(Float64Array.of(...pieces[0], ...pieces[1]), [
          counts[0] + counts[1],
          kvHeads,
          headDim,
        ]);
        const cuSeqlens = cuSeqlensFromLengths(counts);
        backend.copyRows(keys, piece, { cuSeqlens, offsets: [used[0], capacity + used[1]] });
        backend.updateCentroids(means, piece, { cuSeqlens, offsets: [...used], cuCentroids, blockSize });
        counts.forEach((count, s) => {
          used[s] += count;
        });
      }
      const cached = await keys.values();
      const running = await means.values();
      const queries = gaussian(random, [2, heads, headDim]);
      const q = backend.tensor(queries.values, queries.shape);
      const cuSeqlensK = [0, lengths[0], capacity, capacity + lengths[1], 2 * capacity];
      const routing = backend.routeCentroids(q, means, {
        cuSeqlens: [0, lengths[0] > 0 ? 1 : 0, lengths[0] > 0 ? 1 : 0, 2, 2],
        cuSeqlensK,
        cuCentroids: [0, rooms, rooms, 2 * rooms, 2 * rooms],
        blockSize,
        topK: 3,
      });
      const chosen = await routing.indices.data();
      for (const [s, values] of whole.entries()) {
        const at = s * capacity * kvHeads * headDim;
        expect(maxDifference(cached.slice(at, at + values.length), values)).toBe(0);
        const cuSeqlens = Int32Array.of(0, lengths[s]);
        const expected = centroids({ k: values, kvHeads, headDim, cuSeqlens, blockSize });
        const from = s * rooms * kvHeads * headDim;
        expect(maxDifference(running.slice(from, from + expected.length), expected)).toBeLessThan(2e-6);
        if (lengths[s] === 0) continue;
        const query = queries.values.slice(s * heads * headDim, (s + 1) * heads * headDim);
        const layout = { heads, kvHeads, headDim, cuSeqlens: Int32Array.of(0, 1), cuSeqlensK: cuSeqlens };
        const routed = routeBlocks({ ...layout, q: query, k: values, blockSize, topK: 3, causal: true });
        const slots = routing.indices.shape[2];
        for (let head = 0; head < heads; head++) {
          const row = (s * heads + head) * slots;
          const real = [...chosen.slice(row, row + slots)].filter((block) => block >= 0);
          const reference = [...routed.indices.slice(head * routed.slots, (head + 1) * routed.slots)];
          expect(real, `round ${round}`).toEqual(reference.filter((block) => block >= 0));
        }
      }
    }
  });

  it("of 32768 keys answers a query sparsely, many times faster than densely", async () => {
    const backend = new ReferenceBackend();
    const random = new Random(seed + 6);
    const [length, blockSize, shape] = [32768, 64, [2, 32]];
    const keys = backend.zeros([length, ...shape]);
    const means = backend.zeros([length / blockSize, ...shape]);
    const piece = gaussian(random, [length - 1, ...shape]);
    const cuCentroids = [0, length / blockSize];
    const append = (k: Tensor, offset: number) => {
      backend.copyRows(keys, k, { offsets: [offset] });
      backend.updateCentroids(means, k, { offsets: [offset], cuCentroids, blockSize });
    };
    append(backend.tensor(piece.values, piece.shape), 0);
    const token = backend.tensor(random.gaussians(64), [1, ...shape]);
    const cuSeqlensK = [0, length];
    const sparse = () => {
      append(token, length - 1);
      const routing = backend.routeCentroids(token, means, { cuSeqlensK, blockSize, topK: 8 });
      backend.attend(token, keys, keys, routing);
    };
    const dense = () => {
      append(token, length - 1);
      backend.attention(token, keys, keys, { cuSeqlensK });
    };
    const median = async (run: () => void) => {
      const times = [];
      for (let i = 0; i < 21; i++) times.push(await backend.time(() => backend.scope(run)));
      return times.sort((a, b) => a - b)[10];
    };
    const times = [await median(sparse), await median(dense)];
    console.log(
      `a token after 32767, 2 heads of 32: ${times[0].toFixed(2)} ms, dense ${times[1].toFixed(2)} ms`,
    );
    expect(times[0]).toBeLessThan(times[1] / 3);
  });
});
