import { routeBlocks } from "@moba-js/reference";
import type { Operation } from "@moba-js/tensor";
import { attendCall, denseCall, windowCall } from "./attention.js";
import { type AttentionCase, describeCase, drawProblem, type Problem } from "./cases.js";
import type { Check, Subject } from "./check.js";
import {
  type Expectation,
  type HostTensor,
  judgeOutputs,
  mapNamed,
  type Named,
  UNIT_ROUNDOFF,
} from "./compare.js";
import { backwardCall, backwardCase } from "./gradients.js";
import { judgeRouting } from "./judge-routing.js";
import {
  drawKeyConv,
  type KeyConvCase,
  type KeyConvData,
  keyConvBackwardCall,
  keyConvCall,
} from "./key-conv.js";
import { centroidCall, routeCall } from "./routing.js";
import { type ComparedCall, compared, runTrial, type Trial } from "./trial.js";

/**
 * Blocks with keys later in the own block, blocks that some queries do not choose, and a second sequence behind the first
 * one's short last block: all places that a padded tile reads and must not let through.
 */
const CASES: readonly AttentionCase[] = [
  {
    name: "non-finite",
    lengths: [21, 10],
    keyLengths: [27, 10],
    heads: 4,
    kvHeads: 2,
    headDim: 8,
    blockSize: 8,
    topK: 2,
  },
  {
    name: "non-finite, not causal",
    lengths: [21, 10],
    keyLengths: [27, 10],
    heads: 4,
    kvHeads: 2,
    headDim: 8,
    blockSize: 8,
    topK: 2,
    causal: false,
  },
  {
    name: "non-finite, B = 64",
    lengths: [100, 20],
    heads: 1,
    kvHeads: 1,
    headDim: 64,
    blockSize: 64,
    topK: 2,
  },
];

const KEY_CONV_CASE: KeyConvCase = { name: "non-finite", lengths: [9, 4], kvHeads: 2, headDim: 3, width: 3 };

/** One element of one input. */
interface Place<Input extends string> {
  readonly input: Input;
  readonly token: number;
}

/** A copy of the data with `value` in the last channel of a token. */
function inject<Input extends string, Data extends Readonly<Record<Input, Float64Array>>>(
  data: Data,
  { input, token }: Place<Input>,
  channels: number,
  value: number,
): Data {
  const changed: Float64Array = data[input];
  return { ...data, [input]: changed.with((token + 1) * channels - 1, value) };
}

/**
 * What is expected, to a few roundings: few finite elements may be left, too few to compare with the emulation's error, and
 * how exact they are is for other checks.
 */
const roughly = (expected: Named<Expectation>): Named<Expectation> =>
  mapNamed(expected, (output) => ({
    ...output,
    bound: Math.max(output.bound, 4 * UNIT_ROUNDOFF[output.dtype]),
  }));

/** NaN: the results are NaN where the oracle's are, and right everywhere else. */
function nanTrial(callOf: (value: number) => ComparedCall): Trial {
  const { expected, ...call } = callOf(Number.NaN);
  return compared({ ...call, expected: roughly(expected) });
}

/** Infinity: the results that it does not touch are right. It touches what a NaN in its place would. */
function infinityTrial(callOf: (value: number) => ComparedCall): Trial {
  const { expected, ...call } = callOf(Number.POSITIVE_INFINITY);
  const withNaN = callOf(Number.NaN).expected;
  /** The outputs, with the expected values where they were touched. */
  const untouched = (outputs: Named<HostTensor>): Named<HostTensor> =>
    mapNamed(outputs, (output, name) => {
      const touched = withNaN[name].reference;
      const { reference } = expected[name];
      return {
        ...output,
        values: output.values.map((x, i) => (Number.isNaN(touched[i]) ? reference[i] : x)),
      };
    });
  return { ...call, judge: (outputs) => judgeOutputs(roughly(expected), untouched(outputs)) };
}

/** Two checks, with a NaN and with an Infinity. */
const bothChecks = (
  { backend }: Subject,
  operation: Operation,
  title: string,
  callOf: (value: number) => ComparedCall,
): Check[] => [
  {
    title: `${operation}, NaN in ${title}`,
    needs: [operation],
    run: () => runTrial(backend, nanTrial(callOf)),
  },
  {
    title: `${operation}, Infinity in ${title}`,
    needs: [operation],
    run: () => runTrial(backend, infinityTrial(callOf)),
  },
];

type AttentionInput = "q" | "k" | "v" | "dOut";

/** Operations on attention problems: what they read, and their call on a changed problem. */
const OPERATIONS: readonly {
  readonly operation: Operation;
  readonly inputs: readonly AttentionInput[];
  call(subject: Subject, changed: Problem, original: Problem): ComparedCall;
}[] = [
  { operation: "attention", inputs: ["q", "k", "v"], call: denseCall },
  { operation: "windowAttention", inputs: ["q", "k", "v"], call: windowCall },
  { operation: "centroids", inputs: ["k"], call: centroidCall },
  {
    operation: "attend",
    inputs: ["q", "k", "v"],
    call: (subject, changed, original) => attendCall(subject, changed, routeBlocks(original)),
  },
  {
    operation: "attendBackward",
    inputs: ["q", "k", "v", "dOut"],
    call: (subject, changed, original) => backwardCall(subject, backwardCase(changed, routeBlocks(original))),
  },
];

/** Inside the second block, and the first token of the second sequence. */
function placesOf(problem: Problem, input: AttentionInput): Place<AttentionInput>[] {
  const inSecondBlock = problem.blockSize + Math.floor(problem.blockSize / 2);
  if (input === "q" || input === "dOut") return [{ input, token: inSecondBlock }];
  return [
    { input, token: inSecondBlock },
    { input, token: problem.cuSeqlensK[1] },
  ];
}

const channelsOf = ({ heads, kvHeads, headDim }: Problem, input: AttentionInput): number =>
  headDim * (input === "q" || input === "dOut" ? heads : kvHeads);

/** The checks of one operation on attention problems. */
const operationChecks = (
  subject: Subject,
  { operation, inputs, call }: (typeof OPERATIONS)[number],
  shape: AttentionCase,
): Check[] => {
  const original = drawProblem(shape, subject);
  return inputs.flatMap((input) =>
    placesOf(original, input).flatMap((place) =>
      bothChecks(subject, operation, `${input} at token ${place.token} of ${describeCase(shape)}`, (value) =>
        call(subject, inject(original, place, channelsOf(original, input), value), original),
      ),
    ),
  );
};

/** Routing: a NaN score ranks below every other. */
const routeChecks = (subject: Subject, shape: AttentionCase): Check[] => {
  const original = drawProblem(shape, subject);
  const places = (["q", "k"] as const).flatMap((input) => placesOf(original, input));
  return places.flatMap((place) =>
    [Number.NaN, Number.POSITIVE_INFINITY].map((value) => ({
      title: `route, ${value} in ${place.input} at token ${place.token} of ${describeCase(shape)}`,
      needs: ["route"] as const,
      run: () => {
        const problem = inject(original, place, channelsOf(original, place.input), value);
        return runTrial(subject.backend, {
          ...routeCall(subject, problem),
          judge: ({ indices }) => judgeRouting(problem, indices),
        });
      },
    })),
  );
};

type KeyConvInput = "k" | "dOut" | "history";

const keyConvChecks = (subject: Subject): Check[] => {
  const data = drawKeyConv(KEY_CONV_CASE, subject);
  const channels = data.kvHeads * data.headDim;
  const checks = (
    operation: Operation,
    input: KeyConvInput,
    token: number,
    call: (subject: Subject, data: KeyConvData) => ComparedCall,
  ) =>
    bothChecks(subject, operation, `${input} at token ${token} of N=[9,4] Hkv=2 d=3 W=3`, (value) =>
      call(subject, inject(data, { input, token }, channels, value)),
    );
  return [
    ...checks("keyConv", "k", 8, keyConvCall),
    ...checks("keyConv", "history", 1, keyConvCall),
    ...checks("keyConvBackward", "k", 8, keyConvBackwardCall),
    ...checks("keyConvBackward", "dOut", 9, keyConvBackwardCall),
  ];
};

/** NaN and Infinity propagate to the rows that they touch and no others. */
export const nonFiniteChecks = (subject: Subject): Check[] => [
  ...CASES.flatMap((shape) => [
    ...OPERATIONS.flatMap((operation) => operationChecks(subject, operation, shape)),
    ...routeChecks(subject, shape),
  ]),
  ...keyConvChecks(subject),
];
