import {
  type AttentionInputs,
  attendBlocks,
  attendBlocksBackward,
  attendSlotsBackward,
  type BlockRouting,
  denseAttention,
  denseAttentionBackward,
  denseRange,
  type Gradients,
  rangeAttentionBackward,
  windowAttention,
  windowAttentionBackward,
  windowRange,
} from "@moba-js/reference";
import { checksOf, routingOf, withRouting } from "./attention.js";
import {
  ATTENTION_CASES,
  type AttentionCase,
  attentionTensors,
  describeCase,
  drawProblem,
  keyShape,
  type Problem,
  queryShape,
} from "./cases.js";
import type { Check, Subject } from "./check.js";
import { type Expectation, F32_BOUND, F32_SUM_BOUND, relativeError, rounding } from "./compare.js";
import type { Outcome } from "./report.js";
import { type ComparedCall, compared } from "./trial.js";

/** The bound on the oracle's gradients against finite differences, both in float64. */
const FINITE_DIFFERENCE_BOUND = 1e-6;

/** What `attendBackward` is given. */
export interface BackwardCase {
  readonly problem: Problem;
  readonly routing: BlockRouting;
  /** The oracle's output rounded to the dtype, and its log-sum-exp in float32. */
  readonly out: Float64Array;
  readonly lse: Float64Array;
}

/** A problem with its forward results from the oracle, so that a wrong forward pass does not show here. */
export function backwardCase(problem: Problem, routing: BlockRouting): BackwardCase {
  const { out, lse } = attendBlocks({ ...problem, routing });
  return { problem, routing, out: out.map(rounding(problem.dtype)), lse: lse.map(Math.fround) };
}

/** What `attendBackward` has to give. */
function expectGradients({ problem, routing, out, lse }: BackwardCase): Record<string, Expectation> {
  return compareGradients(
    problem,
    (round) => attendBlocksBackward({ ...problem, routing, ...(round && { round }) }),
    () => attendSlotsBackward({ ...problem, routing, out, lse }),
  );
}

/**
 * What the gradients of an attention have to be.
 * @param oracle the gradients, with probabilities and results rounded when asked to
 * @param fromOutput the gradients from an output rounded to the dtype
 */
function compareGradients(
  problem: Problem,
  oracle: (round?: (x: number) => number) => Gradients,
  fromOutput: () => Gradients,
): Record<string, Expectation> {
  const { dtype, scale, headDim } = problem;
  const reference = oracle();
  // Two independent errors: probabilities, their gradients and results are rounded; and D = dOut·out sees a rounded out.
  const emulations: Gradients[] = dtype === "f32" ? [] : [oracle(rounding(dtype)), fromOutput()];
  const expect = (name: keyof Gradients, shape: readonly number[], bound: number, floor: number) => {
    const errors = emulations.map((gradients) => relativeError(gradients[name], reference[name], floor));
    const emulatedError = Math.hypot(...errors);
    return { shape, dtype, reference: reference[name], bound, emulatedError, floor };
  };
  // Where a query sees one key, dq and dk are 0 exactly: the difference of terms of size scale·√d.
  const floor = 0.1 * Math.abs(scale) * Math.sqrt(headDim);
  return {
    dq: expect("dq", queryShape(problem), F32_BOUND, floor),
    dk: expect("dk", keyShape(problem), F32_SUM_BOUND, floor),
    dv: expect("dv", keyShape(problem), F32_SUM_BOUND, 0),
  };
}

/** `attendBackward`. */
export function backwardCall({ backend }: Subject, given: BackwardCase): ComparedCall {
  const { problem, routing } = given;
  const { dtype, scaleOption } = problem;
  const shape = queryShape(problem);
  return {
    inputs: {
      ...attentionTensors(problem),
      dOut: { values: problem.dOut, shape, dtype },
      out: { values: given.out, shape, dtype },
      lse: { values: given.lse, shape: shape.slice(0, 2), dtype: "f32" },
    },
    run: ({ dOut, q, k, v, out, lse }) =>
      withRouting(backend, problem, routing, (created) => ({
        ...backend.attendBackward(dOut, q, k, v, out, lse, created, scaleOption),
      })),
    expected: expectGradients(given),
  };
}

/** `attentionBackward`, or `windowAttentionBackward` with a window as long as the problem's block. */
function rangeBackwardCall({ backend }: Subject, problem: Problem, windowed: boolean): ComparedCall {
  const { dtype, causal, cuSeqlens, cuSeqlensK, blockSize: window, scaleOption } = problem;
  const forward = (inputs: AttentionInputs) =>
    windowed ? windowAttention({ ...inputs, window }) : denseAttention({ ...inputs, causal });
  const { out, lse } = forward(problem);
  const rounded = { out: out.map(rounding(dtype)), lse: lse.map(Math.fround) };
  const shape = queryShape(problem);
  const options = { cuSeqlens, cuSeqlensK, ...scaleOption };
  return {
    inputs: {
      ...attentionTensors(problem),
      dOut: { values: problem.dOut, shape, dtype },
      out: { values: rounded.out, shape, dtype },
      lse: { values: rounded.lse, shape: shape.slice(0, 2), dtype: "f32" },
    },
    run: ({ dOut, q, k, v, out, lse }) => ({
      ...(windowed
        ? backend.windowAttentionBackward(dOut, q, k, v, out, lse, { ...options, window })
        : backend.attentionBackward(dOut, q, k, v, out, lse, { ...options, causal })),
    }),
    expected: compareGradients(
      problem,
      (round) => {
        const inputs = { ...problem, ...(round && { round }) };
        return windowed ? windowAttentionBackward({ ...inputs, window }) : denseAttentionBackward(inputs);
      },
      () =>
        rangeAttentionBackward(
          { ...problem, ...rounded },
          windowed ? windowRange(window) : denseRange(causal),
        ),
    ),
  };
}

/** Central differences of `f` at `x`, one element after the other. */
export function finiteDifferences(x: Float64Array, f: (x: Float64Array) => number): Float64Array {
  const h = 1e-5;
  return x.map((value, i) => (f(x.with(i, value + h)) - f(x.with(i, value - h))) / (2 * h));
}

/** `Σ x·y`: the loss whose gradient by `x` is `y`. */
export const inner = (x: Float64Array, y: Float64Array): number => x.reduce((sum, a, i) => sum + a * y[i], 0);

/** Judges a gradient of the oracle by finite differences. */
export function judgeByDifferences(name: string, gradient: Float64Array, differences: Float64Array): Outcome {
  const measured = relativeError(gradient, differences, 0.01);
  const allowed = FINITE_DIFFERENCE_BOUND;
  return {
    check: `${name} of the oracle by finite differences`,
    passed: measured <= allowed,
    measured,
    allowed,
  };
}

/** Small, since finite differences take two forward passes for each input element. */
const SMALL_CASES: readonly AttentionCase[] = [
  { name: "small", lengths: [9], heads: 2, kvHeads: 2, headDim: 2, blockSize: 2, topK: 3 },
  { name: "small, G = 2", lengths: [7, 0, 4], heads: 4, kvHeads: 2, headDim: 2, blockSize: 3, topK: 2 },
  {
    name: "small, Nq < Nk",
    lengths: [4],
    keyLengths: [11],
    heads: 2,
    kvHeads: 1,
    headDim: 3,
    blockSize: 4,
    topK: 2,
  },
  {
    name: "small, not causal",
    lengths: [7, 2],
    keyLengths: [5, 8],
    heads: 1,
    kvHeads: 1,
    headDim: 3,
    blockSize: 3,
    topK: 2,
    causal: false,
  },
  {
    name: "small, random routing",
    lengths: [12],
    heads: 2,
    kvHeads: 1,
    headDim: 1,
    blockSize: 3,
    topK: 3,
    scale: -0.6,
    randomRouting: true,
  },
];

/** The oracle's gradients of {@link SMALL_CASES} against finite differences of its forward pass. */
const differenceChecks = (subject: Subject): Check[] =>
  SMALL_CASES.map((shape) => ({
    title: describeCase(shape),
    needs: ["attendBackward"],
    run: async () => {
      const problem = drawProblem(shape, subject);
      const routing = routingOf(problem, shape, subject);
      const gradients = attendBlocksBackward({ ...problem, routing });
      const loss = (changed: Partial<Problem>) =>
        inner(attendBlocks({ ...problem, ...changed, routing }).out, problem.dOut);
      return [
        judgeByDifferences(
          "dq",
          gradients.dq,
          finiteDifferences(problem.q, (q) => loss({ q })),
        ),
        judgeByDifferences(
          "dk",
          gradients.dk,
          finiteDifferences(problem.k, (k) => loss({ k })),
        ),
        judgeByDifferences(
          "dv",
          gradients.dv,
          finiteDifferences(problem.v, (v) => loss({ v })),
        ),
      ];
    },
  }));

/**
 * Large scores are left out: the oracle's log-sum-exp does not share the rounding of the backend's scores, as its own
 * would, and at ±100 that alone comes near the bound.
 */
const BACKWARD_CASES = ATTENTION_CASES.filter(({ queryFactor }) => queryFactor === undefined);

/** `attendBackward` against the oracle, and the oracle's gradients against finite differences. */
export const backwardChecks = (subject: Subject): Check[] => [
  ...checksOf(subject, ["attendBackward"], BACKWARD_CASES, (problem, shape) =>
    compared(backwardCall(subject, backwardCase(problem, routingOf(problem, shape, subject)))),
  ),
  ...differenceChecks(subject),
];

/** `attentionBackward` against the oracle. */
export const denseBackwardChecks = (subject: Subject): Check[] =>
  checksOf(subject, ["attentionBackward"], BACKWARD_CASES, (problem) =>
    compared(rangeBackwardCall(subject, problem, false)),
  );

/** `windowAttentionBackward` against the oracle. */
export const windowBackwardChecks = (subject: Subject): Check[] =>
  checksOf(
    subject,
    ["windowAttentionBackward"],
    BACKWARD_CASES.filter(({ causal }) => causal !== false),
    (problem) => compared(rangeBackwardCall(subject, problem, true)),
  );
