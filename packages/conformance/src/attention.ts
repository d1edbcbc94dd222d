import {
  type AttentionInputs,
  type AttentionOutputs,
  attendBlocks,
  type BlockRouting,
  denseAttention,
  routeBlocks,
  windowAttention,
} from "@moba-js/reference";
import type { Backend, Operation, Routing } from "@moba-js/tensor";
import {
  ATTENTION_CASES,
  type AttentionCase,
  attentionTensors,
  describeCase,
  drawProblem,
  type Problem,
  queryShape,
  randomRouting,
} from "./cases.js";
import type { Check, Subject } from "./check.js";
import { type Expectation, F32_BOUND, judgeOutputs, relativeError, rounding } from "./compare.js";
import { blockRouting, judgeRouting } from "./judge-routing.js";
import { Random } from "./random.js";
import { type ComparedCall, compared, runTrial, type Trial } from "./trial.js";

/** What an attention has to give, by the oracle's function for it. */
export function expectAttention(
  problem: Problem,
  oracle: (inputs: AttentionInputs) => AttentionOutputs,
): Record<"out" | "lse", Expectation> {
  const shape = queryShape(problem);
  const reference = oracle(problem);
  const emulated =
    problem.dtype === "f32" ? reference : oracle({ ...problem, round: rounding(problem.dtype) });
  return {
    out: {
      shape,
      dtype: problem.dtype,
      reference: reference.out,
      bound: F32_BOUND,
      emulatedError: relativeError(emulated.out, reference.out),
    },
    lse: {
      shape: shape.slice(0, 2),
      dtype: "f32",
      reference: reference.lse,
      bound: F32_BOUND,
      floor: 1, // what counts is the error of exp(lse): absolute where lse is small
    },
  };
}

/** `attention`. */
export const denseCall = ({ backend }: Subject, problem: Problem): ComparedCall => ({
  inputs: attentionTensors(problem),
  run: ({ q, k, v }) => ({ ...backend.attention(q, k, v, { ...problem.options, ...problem.scaleOption }) }),
  expected: expectAttention(problem, (inputs) => denseAttention({ ...inputs, causal: problem.causal })),
});

/** `windowAttention`, the window as long as the problem's block. */
export function windowCall({ backend }: Subject, problem: Problem): ComparedCall {
  const { cuSeqlens, cuSeqlensK, blockSize: window, scaleOption } = problem;
  const options = { cuSeqlens, cuSeqlensK, window, ...scaleOption };
  return {
    inputs: attentionTensors(problem),
    run: ({ q, k, v }) => ({ ...backend.windowAttention(q, k, v, options) }),
    expected: expectAttention(problem, (inputs) => windowAttention({ ...inputs, window })),
  };
}

/** `attend` on a given routing. */
export const attendCall = ({ backend }: Subject, problem: Problem, routing: BlockRouting): ComparedCall => ({
  inputs: attentionTensors(problem),
  run: ({ q, k, v }) =>
    withRouting(backend, problem, routing, (created) => ({
      ...backend.attend(q, k, v, created, problem.scaleOption),
    })),
  expected: expectAttention(problem, (inputs) => attendBlocks({ ...inputs, routing })),
});

/** `moba`, judged on its own routing, which is judged as a selection. */
const mobaTrial = ({ backend }: Subject, problem: Problem): Trial => ({
  inputs: attentionTensors(problem),
  run: ({ q, k, v }) => {
    const { blockSize, topK, options, scaleOption } = problem;
    const result = backend.moba(q, k, v, { blockSize, topK, ...options, ...scaleOption });
    return { out: result.out, lse: result.lse, indices: result.routing.indices };
  },
  judge: (outputs) => {
    const selection = judgeRouting(problem, outputs.indices);
    if (selection.some(({ check, passed }) => check === "form" && !passed)) return selection;
    const routing = blockRouting(problem, outputs.indices);
    const expected = expectAttention(problem, (inputs) => attendBlocks({ ...inputs, routing }));
    return [...selection, ...judgeOutputs(expected, outputs)];
  },
});

/** Runs `body` with a routing of the backend's, made of given indices, and disposes it. */
export function withRouting<T>(
  backend: Backend,
  problem: Problem,
  { indices, slots, blockSize }: BlockRouting,
  body: (routing: Routing) => T,
): T {
  const [tokens, heads] = queryShape(problem);
  const { cuSeqlens, cuSeqlensK, causal } = problem;
  const options = { blockSize, causal, cuSeqlens, cuSeqlensK };
  const routing = backend.createRouting(indices, [tokens, heads, slots], options);
  try {
    return body(routing);
  } finally {
    routing.dispose();
  }
}

/** The routing that a case is attended with: the oracle's, or a random one. */
export const routingOf = (problem: Problem, shape: AttentionCase, { seed }: Subject): BlockRouting =>
  shape.randomRouting ? randomRouting(problem, new Random(`${seed} routing`)) : routeBlocks(problem);

/** One check for each of the cases. */
export function checksOf(
  subject: Subject,
  needs: readonly Operation[],
  cases: readonly AttentionCase[],
  trialOf: (problem: Problem, shape: AttentionCase) => Trial,
): Check[] {
  return cases.map((shape) => ({
    title: describeCase(shape),
    needs,
    run: () => runTrial(subject.backend, trialOf(drawProblem(shape, subject), shape)),
  }));
}

const CAUSAL_CASES = ATTENTION_CASES.filter((shape) => shape.causal !== false);
const ROUTED_CASES = ATTENTION_CASES.filter((shape) => !shape.randomRouting);

/** `attention` against the oracle. */
export const denseChecks = (subject: Subject): Check[] =>
  checksOf(subject, ["attention"], ATTENTION_CASES, (problem) => compared(denseCall(subject, problem)));

/** `windowAttention` against the oracle. */
export const windowChecks = (subject: Subject): Check[] =>
  checksOf(subject, ["windowAttention"], CAUSAL_CASES, (problem) => compared(windowCall(subject, problem)));

/** `attend` against the oracle, on the oracle's routing or a random one. */
export const attendChecks = (subject: Subject): Check[] =>
  checksOf(subject, ["attend"], ATTENTION_CASES, (problem, shape) =>
    compared(attendCall(subject, problem, routingOf(problem, shape, subject))),
  );

/** `moba` against the oracle. */
export const mobaChecks = (subject: Subject): Check[] =>
  checksOf(subject, ["route", "attend"], ROUTED_CASES, (problem) => mobaTrial(subject, problem));
