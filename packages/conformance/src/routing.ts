import { centroids } from "@moba-js/reference";
import { checksOf } from "./attention.js";
import {
  ATTENTION_CASES,
  type AttentionCase,
  attentionTensors,
  describeCase,
  drawProblem,
  type Problem,
} from "./cases.js";
import type { Check, Subject } from "./check.js";
import { F32_BOUND } from "./compare.js";
import { judgeExactRouting, judgeRouting } from "./judge-routing.js";
import { Random } from "./random.js";
import { type Call, type ComparedCall, compared, runTrial } from "./trial.js";

/** `centroids` of the keys: float32, whatever they are. */
export function centroidCall({ backend }: Subject, problem: Problem): ComparedCall {
  const { blockSize, kvHeads, headDim, cuSeqlensK: cuSeqlens } = problem;
  const options = cuSeqlens.length === 2 ? { blockSize } : { blockSize, cuSeqlens };
  const reference = centroids({ ...problem, cuSeqlens });
  const shape = [reference.length / (kvHeads * headDim), kvHeads, headDim];
  return {
    inputs: { k: attentionTensors(problem).k },
    run: ({ k }) => ({ centroids: backend.centroids(k, options) }),
    expected: { centroids: { shape, dtype: "f32", reference, bound: F32_BOUND } },
  };
}

/** `route`. */
export function routeCall({ backend }: Subject, problem: Problem): Call {
  const { q, k } = attentionTensors(problem);
  const { blockSize, topK, options } = problem;
  return {
    inputs: { q, k },
    run: (tensors) => ({
      indices: backend.route(tensors.q, tensors.k, { blockSize, topK, ...options }).indices,
    }),
  };
}

/** `centroids` against the oracle, on the keys of every attention case. */
export const centroidChecks = (subject: Subject): Check[] =>
  checksOf(subject, ["centroids"], ATTENTION_CASES, (problem) => compared(centroidCall(subject, problem)));

/** Enough slots to judge the agreement with the oracle by. */
const LARGE_CASES: readonly AttentionCase[] = [
  { name: "agreement", lengths: [1000], heads: 4, kvHeads: 2, headDim: 64, blockSize: 32, topK: 8 },
  {
    name: "agreement, not causal",
    lengths: [300, 500],
    heads: 2,
    kvHeads: 2,
    headDim: 64,
    blockSize: 24,
    topK: 6,
    causal: false,
  },
  { name: "many blocks", lengths: [640], heads: 2, kvHeads: 1, headDim: 64, blockSize: 2, topK: 8 },
  {
    name: "many blocks, k = 16",
    lengths: [60, 500],
    heads: 1,
    kvHeads: 1,
    headDim: 128,
    blockSize: 2,
    topK: 16,
  },
];

/** A case of integers from the first of two numbers to the second. */
interface IntegerCase extends AttentionCase {
  readonly queries: readonly [low: number, high: number];
  readonly keys: readonly [low: number, high: number];
}

/** Small integers in blocks of 2 or 4: every score is exact in every dtype, and many are equal. */
const INTEGER_CASES: readonly IntegerCase[] = [
  {
    name: "ties",
    lengths: [200],
    heads: 2,
    kvHeads: 1,
    headDim: 3,
    blockSize: 4,
    topK: 5,
    queries: [-2, 2],
    keys: [-2, 2],
  },
  {
    name: "ties, not causal",
    lengths: [60, 100],
    heads: 2,
    kvHeads: 2,
    headDim: 2,
    blockSize: 4,
    topK: 5,
    causal: false,
    queries: [-2, 2],
    keys: [-2, 2],
  },
  {
    name: "ties among many blocks",
    lengths: [560],
    heads: 2,
    kvHeads: 1,
    headDim: 64,
    blockSize: 2,
    topK: 8,
    queries: [-1, 1],
    keys: [-1, 1],
  },
  {
    name: "ties among many blocks, not causal",
    lengths: [50, 400],
    heads: 2,
    kvHeads: 2,
    headDim: 128,
    blockSize: 2,
    topK: 15,
    causal: false,
    queries: [-1, 1],
    keys: [-1, 1],
  },
  {
    name: "negative scores",
    lengths: [440],
    heads: 2,
    kvHeads: 2,
    headDim: 64,
    blockSize: 2,
    topK: 12,
    queries: [-2, -1],
    keys: [1, 2],
  },
];

function integerCheck(subject: Subject, shape: IntegerCase): Check {
  return {
    title: describeCase(shape),
    needs: ["route"],
    run: () => {
      const random = new Random(`${subject.seed} ${shape.name}`);
      const problem = drawProblem(shape, subject);
      const exact = {
        ...problem,
        q: problem.q.map(() => random.integer(...shape.queries)),
        k: problem.k.map(() => random.integer(...shape.keys)),
      };
      return runTrial(subject.backend, {
        ...routeCall(subject, exact),
        judge: ({ indices }) => judgeExactRouting(exact, indices),
      });
    },
  };
}

/** `route`, judged as a selection; on exact ties, as equal to the oracle's. */
export const routeChecks = (subject: Subject): Check[] => {
  const shapes = ATTENTION_CASES.filter((shape) => !shape.randomRouting);
  return [
    ...checksOf(subject, ["route"], [...shapes, ...LARGE_CASES], (problem) => ({
      ...routeCall(subject, problem),
      judge: ({ indices }) => judgeRouting(problem, indices),
    })),
    ...INTEGER_CASES.map((shape) => integerCheck(subject, shape)),
  ];
};
