import { keyConv, keyConvBackward, keyConvHistory } from "@moba-js/reference";
import { type CuSeqlens, cuSeqlensFromLengths, type FloatDType, type Tensor } from "@moba-js/tensor";
import type { Check, Subject } from "./check.js";
import {
  type Expectation,
  F32_BOUND,
  F32_SUM_BOUND,
  type HostTensor,
  judgeOutput,
  relativeError,
  rounding,
} from "./compare.js";
import { finiteDifferences, inner, judgeByDifferences } from "./gradients.js";
import { Random } from "./random.js";
import { type ComparedCall, compared, runTrial, type Trial } from "./trial.js";

/** Shapes of a key convolution. */
export interface KeyConvCase {
  readonly name: string;
  readonly lengths: readonly number[];
  readonly kvHeads: number;
  readonly headDim: number;
  /** `W`. */
  readonly width: number;
  /** Keys are standard normal times this. Default 1. */
  readonly keyFactor?: number;
}

const KEY_CONV_CASES: readonly KeyConvCase[] = [
  { name: "one token", lengths: [1], kvHeads: 1, headDim: 4, width: 3 },
  { name: "W = 1", lengths: [17], kvHeads: 2, headDim: 5, width: 1 },
  { name: "W = 3", lengths: [37], kvHeads: 2, headDim: 8, width: 3 },
  { name: "W = 5", lengths: [130], kvHeads: 2, headDim: 64, width: 5 },
  { name: "W = 4, d = 1", lengths: [30], kvHeads: 3, headDim: 1, width: 4 },
  { name: "several sequences, some empty", lengths: [0, 19, 0, 1, 30, 0], kvHeads: 2, headDim: 7, width: 3 },
  { name: "N < W", lengths: [2, 5, 3], kvHeads: 1, headDim: 8, width: 8 },
  { name: "one empty sequence", lengths: [0], kvHeads: 1, headDim: 8, width: 3 },
  { name: "no sequence", lengths: [], kvHeads: 1, headDim: 8, width: 3 },
  { name: "long", lengths: [900], kvHeads: 1, headDim: 16, width: 5 },
  // Weighted sums of ±100 and more: exp overflows in a careless SiLU.
  { name: "large keys", lengths: [40], kvHeads: 1, headDim: 8, width: 3, keyFactor: 100 },
];

/** A key convolution with its data: values of the dtype in float64. */
export interface KeyConvData {
  readonly dtype: FloatDType;
  readonly k: Float64Array;
  readonly weights: Float64Array;
  readonly dOut: Float64Array;
  /** `[batch, W−1, Hkv, d]` */
  readonly history: Float64Array;
  readonly width: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly cuSeqlens: CuSeqlens;
}

const describeCase = ({ name, lengths, kvHeads, headDim, width }: KeyConvCase): string =>
  `${name}: N=[${lengths}] Hkv=${kvHeads} d=${headDim} W=${width}`;

/** Draws a case's data. The same for the same seed and case name. */
export function drawKeyConv(
  shape: KeyConvCase,
  { dtype, seed }: Pick<Subject, "dtype" | "seed">,
): KeyConvData {
  const { lengths, kvHeads, headDim, width, keyFactor = 1 } = shape;
  const random = new Random(`${seed} keyConv ${shape.name}`);
  const cuSeqlens = cuSeqlensFromLengths(lengths);
  const channels = kvHeads * headDim;
  const draw = (rows: number, factor = 1) =>
    random.gaussians(rows * channels).map((x) => rounding(dtype)(factor * x));
  const tokens = cuSeqlens[lengths.length];
  return {
    dtype,
    k: draw(tokens, keyFactor),
    weights: draw(width),
    dOut: draw(tokens),
    history: draw(lengths.length * (width - 1), keyFactor),
    width,
    kvHeads,
    headDim,
    cuSeqlens,
  };
}

type KeyConvWithoutHistory = Omit<KeyConvData, "history">;

const withoutHistory = ({ history: _, ...rest }: KeyConvData): KeyConvWithoutHistory => rest;

const shapesOf = ({ k, width, kvHeads, headDim, cuSeqlens }: KeyConvWithoutHistory) => ({
  k: [k.length / (kvHeads * headDim), kvHeads, headDim],
  weights: [width, kvHeads, headDim],
  history: [cuSeqlens.length - 1, width - 1, kvHeads, headDim],
});

/** Keys and weights for a backend. */
export function keyConvTensors(data: KeyConvData): Record<"k" | "weights" | "history" | "dOut", HostTensor> {
  const { k, weights, history, dOut, dtype } = data;
  const shapes = shapesOf(data);
  return {
    k: { values: k, shape: shapes.k, dtype },
    weights: { values: weights, shape: shapes.weights, dtype },
    history: { values: history, shape: shapes.history, dtype },
    dOut: { values: dOut, shape: shapes.k, dtype },
  };
}

/** Packing as a caller gives it: left out for one sequence. */
const packing = ({ cuSeqlens }: KeyConvData) => (cuSeqlens.length === 2 ? {} : { cuSeqlens });

/** What `keyConv` has to give. */
function expectKeys(data: KeyConvData | KeyConvWithoutHistory): Expectation {
  const reference = keyConv(data);
  const emulatedError = relativeError(reference.map(rounding(data.dtype)), reference);
  return { shape: shapesOf(data).k, dtype: data.dtype, reference, bound: F32_BOUND, emulatedError };
}

/** What `keyConvHistory` has to give: copies, so exactly this. */
const expectHistory = (data: KeyConvData | KeyConvWithoutHistory): Expectation => ({
  shape: shapesOf(data).history,
  dtype: data.dtype,
  reference: keyConvHistory(data),
  bound: 0,
});

/** `keyConv` and `keyConvHistory`, with and without the keys before. */
export function keyConvCall({ backend }: Subject, data: KeyConvData): ComparedCall {
  const { k, weights, history } = keyConvTensors(data);
  const fresh = withoutHistory(data);
  const plain = packing(data);
  return {
    inputs: { k, weights, history },
    run: (tensors) => {
      const continued = { ...plain, history: tensors.history };
      return {
        out: backend.keyConv(tensors.k, tensors.weights, plain),
        "out with history": backend.keyConv(tensors.k, tensors.weights, continued),
        history: backend.keyConvHistory(tensors.k, data.width, plain),
        "history with history": backend.keyConvHistory(tensors.k, data.width, continued),
      };
    },
    expected: {
      out: expectKeys(fresh),
      "out with history": expectKeys(data),
      history: expectHistory(fresh),
      "history with history": expectHistory(data),
    },
  };
}

/** `keyConvBackward`. */
export function keyConvBackwardCall({ backend }: Subject, data: KeyConvData): ComparedCall {
  const { dOut, k, weights } = keyConvTensors(data);
  const { dtype } = data;
  const shapes = shapesOf(data);
  const reference = keyConvBackward(withoutHistory(data));
  const expect = (name: "dk" | "dWeights", shape: readonly number[], bound: number): Expectation => {
    const emulatedError = relativeError(reference[name].map(rounding(dtype)), reference[name]);
    return { shape, dtype, reference: reference[name], bound, emulatedError };
  };
  return {
    inputs: { dOut, k, weights },
    run: (tensors) => ({
      ...backend.keyConvBackward(tensors.dOut, tensors.k, tensors.weights, packing(data)),
    }),
    expected: {
      dk: expect("dk", shapes.k, F32_BOUND),
      dWeights: expect("dWeights", shapes.weights, F32_SUM_BOUND),
    },
  };
}

/** Some tokens of each sequence, that follow each other. */
interface Piece {
  readonly cuSeqlens: CuSeqlens;
  /** Which tokens of the whole they are. */
  readonly tokens: readonly number[];
}

/** Cuts each sequence into `count` pieces at random places. */
function cut({ cuSeqlens }: KeyConvData, count: number, random: Random): Piece[] {
  const begins = [...cuSeqlens.subarray(0, -1)];
  return Array.from({ length: count }, (_, i) => {
    const taken = begins.map((begin, s) => {
      const left = cuSeqlens[s + 1] - begin;
      return i === count - 1 ? left : random.integer(0, left);
    });
    const tokens = taken.flatMap((length, s) => Array.from({ length }, (_, j) => begins[s] + j));
    taken.forEach((length, s) => {
      begins[s] += length;
    });
    return { cuSeqlens: cuSeqlensFromLengths(taken), tokens };
  });
}

/** The rows of `x` that are these tokens. */
const gather = (x: Float64Array, tokens: readonly number[], channels: number): Float64Array =>
  Float64Array.from(tokens.flatMap((t) => [...x.subarray(t * channels, (t + 1) * channels)]));

/** A stream in pieces, each handed the history that the pieces before it leave, is the whole. */
const streamTrial = ({ backend, seed }: Subject, data: KeyConvData): Trial => {
  const { kvHeads, headDim, width, dtype } = data;
  const channels = kvHeads * headDim;
  const pieces = cut(data, 3, new Random(`${seed} pieces`));
  const keys = pieces.map(({ tokens }, i): [string, HostTensor] => {
    const values = gather(data.k, tokens, channels);
    return [`k${i}`, { values, shape: [tokens.length, kvHeads, headDim], dtype }];
  });
  return {
    inputs: { weights: keyConvTensors(data).weights, ...Object.fromEntries(keys) },
    run: (tensors) => {
      const outputs: Record<string, Tensor> = {};
      let history: Tensor | undefined;
      pieces.forEach(({ cuSeqlens }, i) => {
        const options = { cuSeqlens, ...(history && { history }) };
        outputs[`out${i}`] = backend.keyConv(tensors[`k${i}`], tensors.weights, options);
        const next = backend.keyConvHistory(tensors[`k${i}`], width, options);
        history?.dispose();
        history = next;
      });
      return { ...outputs, ...(history && { history }) };
    },
    judge: ({ history, ...outputs }) => {
      const whole = new Float64Array(data.k.length);
      pieces.forEach(({ tokens }, i) => {
        tokens.forEach((t, row) => {
          const piece = outputs[`out${i}`].values.subarray(row * channels, (row + 1) * channels);
          whole.set(piece, t * channels);
        });
      });
      const fresh = withoutHistory(data);
      const out = { values: whole, shape: shapesOf(data).k, dtype };
      return [
        judgeOutput("stream in pieces", out, expectKeys(fresh)),
        judgeOutput("history of the stream", history, expectHistory(fresh)),
      ];
    },
  };
};

/** `keyConv` and `keyConvHistory` against the oracle, at once and as streams. */
export const keyConvChecks = (subject: Subject): Check[] =>
  KEY_CONV_CASES.map((shape) => ({
    title: describeCase(shape),
    needs: ["keyConv"],
    run: async () => {
      const data = drawKeyConv(shape, subject);
      return [
        ...(await runTrial(subject.backend, compared(keyConvCall(subject, data)))),
        ...(await runTrial(subject.backend, streamTrial(subject, data))),
      ];
    },
  }));

/** Small, since finite differences take two forward passes for each input element. */
const SMALL_CASE: KeyConvCase = { name: "small", lengths: [7, 0, 2], kvHeads: 2, headDim: 2, width: 3 };

/** The oracle's gradients against finite differences of its forward pass. */
const differenceCheck = (subject: Subject): Check => ({
  title: describeCase(SMALL_CASE),
  needs: ["keyConvBackward"],
  run: async () => {
    const data = withoutHistory(drawKeyConv(SMALL_CASE, subject));
    const { dk, dWeights } = keyConvBackward(data);
    const loss = (changed: Partial<KeyConvData>) => inner(keyConv({ ...data, ...changed }), data.dOut);
    return [
      judgeByDifferences(
        "dk",
        dk,
        finiteDifferences(data.k, (k) => loss({ k })),
      ),
      judgeByDifferences(
        "dWeights",
        dWeights,
        finiteDifferences(data.weights, (weights) => loss({ weights })),
      ),
    ];
  },
});

/** `keyConvBackward` against the oracle, and the oracle's gradients against finite differences. */
export const keyConvBackwardChecks = (subject: Subject): Check[] => [
  ...KEY_CONV_CASES.map((shape) => ({
    title: describeCase(shape),
    needs: ["keyConvBackward"] as const,
    run: () => {
      const data = drawKeyConv(shape, subject);
      return runTrial(subject.backend, compared(keyConvBackwardCall(subject, data)));
    },
  })),
  differenceCheck(subject),
];
