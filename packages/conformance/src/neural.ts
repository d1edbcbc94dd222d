import {
  adamw,
  add,
  crossEntropy,
  crossEntropyBackward,
  embedding,
  embeddingBackward,
  matmul,
  rmsNorm,
  rmsNormBackward,
  rope,
  sum,
  sumSquares,
  swiglu,
  swigluBackward,
  transpose,
} from "@moba-js/reference";
import {
  type DType,
  type FloatDType,
  type NeuralOperation,
  roundTo,
  sizeOf,
  type Tensor,
} from "@moba-js/tensor";
import type { Check, Subject } from "./check.js";
import {
  type Expectation,
  F32_BOUND,
  F32_SUM_BOUND,
  type HostTensor,
  relativeError,
  rounding,
  UNIT_ROUNDOFF,
} from "./compare.js";
import { Random } from "./random.js";
import { type ComparedCall, compared, runTrial } from "./trial.js";

/** Draws the inputs of one case: standard normal values rounded to a dtype, and integers. */
export class Draw {
  readonly #random: Random;

  constructor(
    readonly dtype: FloatDType,
    seed: string,
  ) {
    this.#random = new Random(seed);
  }

  floats(shape: readonly number[], dtype: FloatDType = this.dtype, factor = 1): HostTensor {
    const values = this.#random.gaussians(sizeOf(shape)).map((x) => roundTo(dtype, factor * x));
    return { shape, dtype, values };
  }

  integers(count: number, low: number, high: number): HostTensor {
    const values = Float64Array.from({ length: count }, () => this.#random.integer(low, high));
    return { shape: [count], dtype: "i32", values };
  }

  /** Targets of a loss over so many columns; of each three, the second is −1 and the third `columns`: ignored. */
  targets(tokens: number, columns: number): HostTensor {
    const drawn = this.integers(tokens, 0, columns - 1);
    return { ...drawn, values: drawn.values.map((target, i) => [target, -1, columns][i % 3]) };
  }
}

/** What a result has to be: the oracle's, and in low precision as close as that rounded. */
export function expectRounded(
  shape: readonly number[],
  dtype: FloatDType,
  reference: Float64Array,
  bound = F32_BOUND,
  floor = 0,
): Expectation {
  const emulatedError = relativeError(reference.map(rounding(dtype)), reference, floor);
  return { shape, dtype, reference, bound, emulatedError, floor };
}

/** Cases of an operation by name, each with what it is drawn from. */
type Cases<T> = Readonly<Record<string, T>>;

/** The checks of an operation: one for each case. */
export const checksFor =
  <T>(
    operation: Check["needs"][number],
    cases: Cases<T>,
    callOf: (subject: Subject, shape: T, draw: Draw) => ComparedCall,
    also: Check["needs"] = [],
  ) =>
  (subject: Subject): Check[] =>
    Object.entries(cases).map(([title, shape]) => ({
      title,
      needs: [operation, ...also],
      run: () => {
        const draw = new Draw(subject.dtype, `${subject.seed} ${operation} ${title} ${subject.dtype}`);
        return runTrial(subject.backend, compared(callOf(subject, shape, draw)));
      },
    }));

const integersOf = ({ values }: HostTensor): Int32Array => Int32Array.from(values);

/** A copy on the backend, for operations that change their argument. */
export const copyOf = (subject: Subject, tensor: Tensor): Tensor =>
  subject.backend.cast(tensor, tensor.dtype as FloatDType);

const MATRICES: Cases<readonly [rows: number, columns: number, inner: number]> = {
  "1 × 1 × 1": [1, 1, 1],
  "odd sizes": [37, 19, 23],
  "one row": [1, 70, 33],
  "one column": [65, 1, 40],
  "nothing to sum": [5, 3, 0],
  "no rows": [0, 7, 4],
  "larger than a tile": [130, 150, 200],
  "a long sum": [3, 5, 2000],
};

const FLAGS = [
  [false, false],
  [false, true],
  [true, false],
  [true, true],
] as const;

/** `x weightᵀ`, `[T, V]`. */
const logitsOf = (x: HostTensor, weight: HostTensor): Float64Array => {
  const [tokens, inner] = x.shape;
  const [columns] = weight.shape;
  return matmul(x.values, transpose(weight.values, columns, inner), { rows: tokens, inner, columns });
};

/** The loss of logits that may have been rounded: each is the difference of two numbers that are off by as much. */
function expectLoss(
  logits: Float64Array,
  targets: HostTensor,
  columns: number,
  dtype: FloatDType,
): Expectation {
  const { loss: reference } = crossEntropy({ logits, targets: integersOf(targets), columns });
  const largest = logits.reduce((max, logit) => Math.max(max, Math.abs(logit)), 0);
  const bound = F32_BOUND + 2 * UNIT_ROUNDOFF[dtype] * largest;
  return { shape: targets.shape, dtype: "f32", reference, bound, floor: 1 };
}

function matmulChecks(subject: Subject): Check[] {
  return FLAGS.flatMap(([transposeA, transposeB]) =>
    [false, true].flatMap((added) => {
      const suffix = `${transposeA ? ", aᵀ" : ""}${transposeB ? ", bᵀ" : ""}${added ? ", added" : ""}`;
      const named = Object.entries(MATRICES).map(([name, shape]) => [name + suffix, shape] as const);
      return checksFor("matmul", Object.fromEntries(named), ({ backend, dtype }, [m, n, k], draw) => {
        const a = draw.floats(transposeA ? [k, m] : [m, k]);
        const b = draw.floats(transposeB ? [n, k] : [k, n]);
        const product = matmul(
          transposeA ? transpose(a.values, k, m) : a.values,
          transposeB ? transpose(b.values, n, k) : b.values,
          { rows: m, inner: k, columns: n },
        );
        const addend = added ? draw.floats([m, n]) : undefined;
        return {
          inputs: { a, b, ...(addend && { addend }) },
          run: (t) => ({
            out: backend.matmul(t.a, t.b, { transposeA, transposeB, ...(added && { addend: t.addend }) }),
          }),
          expected: { out: expectSum(product, addend, [m, n], dtype, F32_BOUND, 0.01 * Math.sqrt(k)) },
        };
      })(subject);
    }),
  );
}

/** {@link expectRounded} of a result to which something is added: perhaps after it was rounded. */
function expectSum(
  values: Float64Array,
  addend: HostTensor | undefined,
  shape: readonly number[],
  dtype: FloatDType,
  bound: number,
  floor: number,
): Expectation {
  if (!addend) return expectRounded(shape, dtype, values, bound, floor);
  const round = rounding(dtype);
  const reference = add(values, addend.values);
  const emulated = add(values.map(round), addend.values).map(round);
  return { shape, dtype, reference, bound, floor, emulatedError: relativeError(emulated, reference, floor) };
}

const TABLES: Cases<readonly [rows: number, channels: number, tokens: number, low: number, high: number]> = {
  "one row": [1, 4, 3, 0, 0],
  "every row": [5, 3, 40, 0, 4],
  "rows that are none": [9, 7, 30, -3, 12],
  "no tokens": [4, 8, 0, 0, 3],
  wide: [100, 130, 70, 0, 99],
};

const ROWS: Cases<readonly [tokens: number, channels: number, factor: number]> = {
  "one element": [1, 1, 1],
  "odd sizes": [13, 37, 1],
  "no tokens": [0, 8, 1],
  wide: [5, 1030, 1],
  "many rows": [300, 16, 1],
  "large values": [7, 33, 50],
};

const TURNS: Cases<readonly [tokens: number, heads: number, headDim: number, highest: number]> = {
  "one pair": [3, 1, 2, 10],
  "several heads": [17, 3, 8, 100],
  "no tokens": [0, 2, 4, 1],
  "d = 64, far positions": [9, 2, 64, 4000],
};

const LOGITS: Cases<readonly [tokens: number, columns: number, factor: number]> = {
  "one column": [4, 1, 1],
  "odd sizes": [13, 37, 1],
  "no tokens": [0, 5, 1],
  "a large vocabulary": [3, 5000, 1],
  "large logits": [9, 20, 200],
};

/** Losses of logits that are a product. */
const PRODUCTS: Cases<readonly [tokens: number, columns: number, channels: number]> = {
  "one column": [4, 1, 3],
  "odd sizes": [13, 37, 5],
  "no tokens": [0, 5, 3],
  "a large vocabulary": [130, 1000, 40],
};

/** Operations on each element, and the sums of all. */
const SHAPES: Cases<readonly number[]> = {
  "one element": [1],
  "a matrix": [13, 37],
  "three dimensions": [3, 5, 7],
  empty: [0, 4],
  "many elements": [70_001],
};

/** Parameters of a step by their shapes, and what is special about the step. */
const STEPS: Cases<{
  readonly shapes: readonly (readonly number[])[];
  /** Of every second gradient, where the others are float32. */
  readonly mixed?: boolean;
  readonly clipNorm?: number;
  /** The last element of the last gradient. */
  readonly gradient?: number;
  /** The norm of the step before. */
  readonly before?: number;
}> = {
  ...Object.fromEntries(Object.entries(SHAPES).map(([name, shape]) => [name, { shapes: [shape] }])),
  "several parameters": { shapes: [[3, 5], [70_001], [0], [1], [13, 37], [20_000]] },
  "gradients of two dtypes": { shapes: [[13, 37], [20_000], [5], [70]], mixed: true },
  "a gradient to be clipped": { shapes: [[13, 37], [5]], clipNorm: 2 },
  "a gradient that is not too long": { shapes: [[13, 37], [5]], clipNorm: 1000 },
  "a gradient with an infinity": { shapes: [[13, 37], [5]], gradient: Number.POSITIVE_INFINITY },
  "a gradient with a NaN": { shapes: [[13, 37], [5]], clipNorm: 2, gradient: Number.NaN },
  "after a step that failed": { shapes: [[13, 37], [5]], before: Number.NaN },
};

/** What the normalization is checked with: not the default, so that it shows when it is not used. */
const EPSILON = 0.01;

const BASE = 500;

/** The checks of each neural operation. */
export const neuralChecks: Readonly<Record<NeuralOperation, (subject: Subject) => Check[]>> = {
  matmul: matmulChecks,
  embedding: checksFor(
    "embedding",
    TABLES,
    ({ backend, dtype }, [rows, channels, tokens, low, high], draw) => {
      const table = draw.floats([rows, channels]);
      const indices = draw.integers(tokens, low, high);
      const out = embedding(table.values, integersOf(indices), channels);
      return {
        inputs: { table, indices },
        run: (t) => ({ out: backend.embedding(t.table, t.indices) }),
        expected: { out: { shape: [tokens, channels], dtype, reference: out, bound: 0 } },
      };
    },
  ),
  embeddingBackward: checksFor(
    "embeddingBackward",
    TABLES,
    ({ backend, dtype }, [rows, channels, tokens, low, high], draw) => {
      const dOut = draw.floats([tokens, channels]);
      const indices = draw.integers(tokens, low, high);
      const dTable = embeddingBackward(dOut.values, integersOf(indices), { rows, channels });
      return {
        inputs: { dOut, indices },
        run: (t) => ({ dTable: backend.embeddingBackward(t.dOut, t.indices, rows) }),
        expected: { dTable: expectRounded([rows, channels], dtype, dTable, F32_SUM_BOUND) },
      };
    },
  ),
  rmsNorm: checksFor("rmsNorm", ROWS, ({ backend, dtype }, [tokens, channels, factor], draw) => {
    const [x, weight] = [draw.floats([tokens, channels], dtype, factor), draw.floats([channels])];
    const out = rmsNorm({ x: x.values, weight: weight.values, epsilon: EPSILON });
    return {
      inputs: { x, weight },
      run: (t) => ({ out: backend.rmsNorm(t.x, t.weight, { epsilon: EPSILON }) }),
      expected: { out: expectRounded(x.shape, dtype, out) },
    };
  }),
  rmsNormBackward: (subject) =>
    [false, true].flatMap((added) => {
      const named = Object.entries(ROWS).map(
        ([name, shape]) => [`${name}${added ? ", added" : ""}`, shape] as const,
      );
      return checksFor(
        "rmsNormBackward",
        Object.fromEntries(named),
        ({ backend, dtype }, [tokens, channels, factor], draw) => {
          const [x, weight] = [draw.floats([tokens, channels], dtype, factor), draw.floats([channels])];
          const dOut = draw.floats([tokens, channels]);
          const addend = added ? draw.floats([tokens, channels]) : undefined;
          const { dx, dWeight } = rmsNormBackward({
            x: x.values,
            weight: weight.values,
            dOut: dOut.values,
            epsilon: EPSILON,
          });
          return {
            inputs: { x, weight, dOut, ...(addend && { addend }) },
            run: (t) => {
              const options = { epsilon: EPSILON, ...(added && { addend: t.addend }) };
              return { ...backend.rmsNormBackward(t.dOut, t.x, t.weight, options) };
            },
            expected: {
              dx: expectSum(dx, addend, x.shape, dtype, F32_BOUND, 0.1 / factor),
              dWeight: expectRounded([channels], dtype, dWeight, F32_SUM_BOUND),
            },
          };
        },
      )(subject);
    }),
  swiglu: checksFor("swiglu", ROWS, ({ backend, dtype }, [tokens, channels, factor], draw) => {
    const [gate, up] = [draw.floats([tokens, channels], dtype, factor), draw.floats([tokens, channels])];
    return {
      inputs: { gate, up },
      run: (t) => ({ out: backend.swiglu(t.gate, t.up) }),
      expected: { out: expectRounded(gate.shape, dtype, swiglu(gate.values, up.values)) },
    };
  }),
  swigluBackward: checksFor(
    "swigluBackward",
    ROWS,
    ({ backend, dtype }, [tokens, channels, factor], draw) => {
      const gate = draw.floats([tokens, channels], dtype, factor);
      const [up, dOut] = [draw.floats(gate.shape), draw.floats(gate.shape)];
      const { dGate, dUp } = swigluBackward(dOut.values, gate.values, up.values);
      return {
        inputs: { gate, up, dOut },
        run: (t) => ({ ...backend.swigluBackward(t.dOut, t.gate, t.up) }),
        expected: {
          dGate: expectRounded(gate.shape, dtype, dGate),
          dUp: expectRounded(gate.shape, dtype, dUp),
        },
      };
    },
  ),
  rope: (subject) =>
    [false, true].flatMap((inverse) => {
      const named = Object.entries(TURNS).map(
        ([name, shape]) => [`${name}${inverse ? ", inverse" : ""}`, shape] as const,
      );
      return checksFor(
        "rope",
        Object.fromEntries(named),
        ({ backend, dtype }, [tokens, heads, headDim, highest], draw) => {
          const x = draw.floats([tokens, heads, headDim]);
          const positions = draw.integers(tokens, 0, highest);
          const turned = rope({
            x: x.values,
            positions: integersOf(positions),
            heads,
            headDim,
            base: BASE,
            inverse,
          });
          return {
            inputs: { x, positions },
            run: (t) => ({ out: backend.rope(t.x, t.positions, { base: BASE, inverse }) }),
            // An angle of `highest` radians is known to float32's precision of that number.
            expected: { out: expectRounded(x.shape, dtype, turned, Math.max(F32_BOUND, highest * 2 ** -23)) },
          };
        },
      )(subject);
    }),
  crossEntropy: checksFor("crossEntropy", LOGITS, ({ backend, dtype }, [tokens, columns, factor], draw) => {
    const logits = draw.floats([tokens, columns], dtype, factor);
    const targets = draw.targets(tokens, columns);
    const { loss, lse } = crossEntropy({ logits: logits.values, targets: integersOf(targets), columns });
    const f32 = { shape: [tokens], dtype: "f32" as const, bound: F32_BOUND, floor: 1 };
    return {
      inputs: { logits, targets },
      run: (t) => ({ ...backend.crossEntropy(t.logits, t.targets) }),
      expected: { loss: { ...f32, reference: loss }, lse: { ...f32, reference: lse } },
    };
  }),
  crossEntropyBackward: checksFor(
    "crossEntropyBackward",
    LOGITS,
    ({ backend, dtype }, [tokens, columns, factor], draw) => {
      const logits = draw.floats([tokens, columns], dtype, factor);
      const targets = draw.targets(tokens, columns);
      const dLoss = draw.floats([tokens], "f32");
      const inputs = { logits: logits.values, targets: integersOf(targets), columns };
      const lse = crossEntropy(inputs).lse.map(Math.fround);
      const dLogits = crossEntropyBackward({ ...inputs, dLoss: dLoss.values, lse });
      return {
        inputs: { logits, targets, dLoss, lse: { shape: [tokens], dtype: "f32", values: lse } },
        run: (t) => ({ dLogits: backend.crossEntropyBackward(t.dLoss, t.logits, t.targets, t.lse) }),
        // The target's own element is a difference from 1, which float32 knows to its precision there.
        expected: {
          dLogits: expectRounded(logits.shape, dtype, dLogits, F32_BOUND, 0.1 / Math.sqrt(columns)),
        },
      };
    },
  ),
  linearCrossEntropy: checksFor(
    "linearCrossEntropy",
    PRODUCTS,
    ({ backend, dtype }, [tokens, columns, channels], draw) => {
      const [x, weight] = [draw.floats([tokens, channels]), draw.floats([columns, channels])];
      const targets = draw.targets(tokens, columns);
      return {
        inputs: { x, weight, targets },
        run: (t) => ({ loss: backend.linearCrossEntropy(t.x, t.weight, t.targets) }),
        expected: { loss: expectLoss(logitsOf(x, weight), targets, columns, dtype) },
      };
    },
  ),
  linearCrossEntropyBackward: checksFor(
    "linearCrossEntropyBackward",
    PRODUCTS,
    ({ backend, dtype }, [tokens, columns, channels], draw) => {
      const [x, weight] = [draw.floats([tokens, channels]), draw.floats([columns, channels])];
      const targets = draw.targets(tokens, columns);
      const dLoss = draw.floats([tokens], "f32");
      const exact = logitsOf(x, weight);
      const of = (logits: Float64Array, round: (x: number) => number) => {
        const inputs = { logits, targets: integersOf(targets), columns };
        const { lse } = crossEntropy(inputs);
        const dLogits = crossEntropyBackward({ ...inputs, dLoss: dLoss.values, lse }).map(round);
        const toX = { rows: tokens, inner: columns, columns: channels };
        const toWeight = { rows: columns, inner: tokens, columns: channels };
        return {
          dx: matmul(dLogits, weight.values, toX).map(round),
          dWeight: matmul(transpose(dLogits, tokens, columns), x.values, toWeight).map(round),
        };
      };
      const round = rounding(dtype);
      const [expected, emulated] = [of(exact, (x) => x), of(exact.map(round), round)];
      const expectation = (name: "dx" | "dWeight", shape: readonly number[]): Expectation => {
        const reference = expected[name];
        const floor = 0.1;
        const emulatedError = relativeError(emulated[name], reference, floor);
        return { shape, dtype, reference, bound: F32_SUM_BOUND, emulatedError, floor };
      };
      return {
        inputs: { dLoss, x, weight, targets },
        run: (t) => ({ ...backend.linearCrossEntropyBackward(t.dLoss, t.x, t.weight, t.targets) }),
        expected: {
          loss: expectLoss(exact, targets, columns, dtype),
          dx: expectation("dx", x.shape),
          dWeight: expectation("dWeight", weight.shape),
        },
      };
    },
  ),
  add: checksFor("add", SHAPES, ({ backend, dtype }, shape, draw) => {
    const [a, b] = [draw.floats(shape), draw.floats(shape)];
    return {
      inputs: { a, b },
      run: (t) => ({ out: backend.add(t.a, t.b) }),
      expected: { out: expectRounded(shape, dtype, add(a.values, b.values)) },
    };
  }),
  sum: checksFor("sum", SHAPES, ({ backend }, shape, draw) => {
    const x = draw.floats(shape);
    const [floor, reference] = [Math.sqrt(sizeOf(shape)), Float64Array.of(sum(x.values))];
    return {
      inputs: { x },
      run: (t) => ({ out: backend.sum(t.x) }),
      expected: { out: { shape: [], dtype: "f32", reference, bound: F32_SUM_BOUND, floor } },
    };
  }),
  sumSquares: checksFor("sumSquares", SHAPES, ({ backend }, shape, draw) => {
    const x = draw.floats(shape);
    const reference = Float64Array.of(sumSquares(x.values));
    return {
      inputs: { x },
      run: (t) => ({ out: backend.sumSquares(t.x) }),
      expected: { out: { shape: [], dtype: "f32", reference, bound: F32_SUM_BOUND } },
    };
  }),
  cast: (subject) =>
    (["f32", subject.dtype] as const).flatMap((to, i) => {
      const from: DType = i === 0 ? subject.dtype : "f32";
      const named = Object.entries(SHAPES).map(
        ([name, shape]) => [`${name}, ${from} to ${to}`, shape] as const,
      );
      return checksFor("cast", Object.fromEntries(named), ({ backend }, shape, draw) => {
        const x = draw.floats(shape, from as FloatDType);
        const reference = x.values.map(rounding(to));
        return {
          inputs: { x },
          run: (t) => ({ out: backend.cast(t.x, to) }),
          expected: { out: { shape, dtype: to, reference, bound: 0 } },
        };
      })(subject);
    }),
  adamw: checksFor(
    "adamw",
    STEPS,
    (subject, { shapes, mixed, clipNorm = 1e9, gradient: last, before = 0 }, draw) => {
      const schedule = { shape: [2], dtype: "f32" as const, values: Float64Array.of(3, Math.fround(0.01)) };
      const gradientNorm = { shape: [], dtype: "f32" as const, values: Float64Array.of(before) };
      const options = { beta1: 0.8, beta2: 0.9, epsilon: 1e-3, clipNorm };
      const drawn = shapes.map((shape, i) => {
        const [parameter, m] = [draw.floats(shape, "f32"), draw.floats(shape, "f32")];
        const v = { ...m, values: draw.floats(shape, "f32").values.map((x) => Math.fround(x * x)) };
        const gradient = draw.floats(shape, mixed && i % 2 === 0 ? "f32" : subject.dtype);
        if (last !== undefined && i === shapes.length - 1) gradient.values[gradient.values.length - 1] = last;
        return { parameter, gradient, m, v, weightDecay: 0.2 * (i % 2) };
      });
      const after = drawn.map(({ parameter, gradient, m, v, weightDecay }) => ({
        ...{ parameter: parameter.values.slice(), gradient: gradient.values },
        ...{ m: m.values.slice(), v: v.values.slice(), weightDecay },
      }));
      const [step, learningRate] = schedule.values;
      const norm = Number.isNaN(before)
        ? before
        : adamw({ ...options, parameters: after, step, learningRate });
      // A step that failed leaves the very bits.
      const bound = Number.isFinite(norm) ? F32_BOUND : 0;
      const numbered = <T>(valuesOf: (at: (typeof drawn)[number], i: number) => Record<string, T>) =>
        Object.fromEntries(
          drawn.flatMap((at, i) => Object.entries(valuesOf(at, i)).map(([name, value]) => [name + i, value])),
        );
      const expected = (shape: readonly number[], reference: Float64Array): Expectation => ({
        ...{ shape, dtype: "f32", reference, bound },
      });
      return {
        inputs: {
          ...numbered<HostTensor>(({ parameter, gradient, m, v }) => ({ parameter, gradient, m, v })),
          ...{ schedule, gradientNorm },
        },
        run: (t) => {
          const parameters = drawn.map(({ weightDecay }, i) => ({
            parameter: copyOf(subject, t[`parameter${i}`]),
            gradient: t[`gradient${i}`],
            m: copyOf(subject, t[`m${i}`]),
            v: copyOf(subject, t[`v${i}`]),
            weightDecay,
          }));
          const changedNorm = copyOf(subject, t.gradientNorm);
          subject.backend.adamw(parameters, t.schedule, changedNorm, options);
          const changed = parameters.flatMap(({ parameter, m, v }, i) => [
            [`parameter${i}`, parameter] as const,
            [`m${i}`, m] as const,
            [`v${i}`, v] as const,
          ]);
          return { ...Object.fromEntries(changed), gradientNorm: changedNorm };
        },
        expected: {
          ...numbered((at, i) => ({
            parameter: expected(at.parameter.shape, after[i].parameter),
            m: expected(at.m.shape, after[i].m),
            v: expected(at.v.shape, after[i].v),
          })),
          gradientNorm: { ...expected([], Float64Array.of(norm)), bound: F32_SUM_BOUND },
        },
      };
    },
    ["cast"],
  ),
};
