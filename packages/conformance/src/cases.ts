import type { AttentionInputs, BlockRouting } from "@moba-js/reference";
import {
  blockCount,
  cuSeqlensFromLengths,
  type FloatDType,
  type PackedOptions,
  sequenceLengths,
} from "@moba-js/tensor";
import type { Subject } from "./check.js";
import { type HostTensor, rounding } from "./compare.js";
import { Random } from "./random.js";

/** Shapes and options of an attention. */
export interface AttentionCase {
  readonly name: string;
  /** Queries of each sequence. */
  readonly lengths: readonly number[];
  /** Keys of each sequence. Default: as the queries. */
  readonly keyLengths?: readonly number[];
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly blockSize: number;
  readonly topK: number;
  /** Default true. */
  readonly causal?: boolean;
  /** Default `1/sqrt(d)`. */
  readonly scale?: number;
  /** Queries are standard normal times this. Default 1. */
  readonly queryFactor?: number;
  /** Routing at random instead of by score. Default false. */
  readonly randomRouting?: boolean;
}

/** The shapes that every attention is tried on. */
export const ATTENTION_CASES: readonly AttentionCase[] = [
  { name: "one token", lengths: [1], heads: 1, kvHeads: 1, headDim: 4, blockSize: 4, topK: 2 },
  { name: "odd sizes", lengths: [67], heads: 3, kvHeads: 3, headDim: 5, blockSize: 7, topK: 3 },
  { name: "odd d", lengths: [51], heads: 1, kvHeads: 1, headDim: 33, blockSize: 16, topK: 2 },
  { name: "d = 1", lengths: [100], heads: 16, kvHeads: 8, headDim: 1, blockSize: 8, topK: 2 },
  { name: "B = 1", lengths: [50], heads: 2, kvHeads: 2, headDim: 8, blockSize: 1, topK: 4 },
  { name: "B = 24", lengths: [100], heads: 2, kvHeads: 1, headDim: 16, blockSize: 24, topK: 3 },
  { name: "N < B", lengths: [5], heads: 12, kvHeads: 6, headDim: 16, blockSize: 16, topK: 3 },
  { name: "short last block", lengths: [41], heads: 2, kvHeads: 2, headDim: 8, blockSize: 16, topK: 2 },
  {
    name: "short last block, not causal",
    lengths: [41, 9],
    heads: 4,
    kvHeads: 4,
    headDim: 8,
    blockSize: 8,
    topK: 2,
    causal: false,
  },
  { name: "k = 1", lengths: [30], heads: 2, kvHeads: 2, headDim: 8, blockSize: 8, topK: 1 },
  { name: "k > n", lengths: [50], heads: 2, kvHeads: 1, headDim: 8, blockSize: 8, topK: 100 },
  {
    name: "k > n, not causal",
    lengths: [21, 50],
    heads: 4,
    kvHeads: 2,
    headDim: 8,
    blockSize: 8,
    topK: 100,
    causal: false,
  },
  { name: "G = 4", lengths: [45], heads: 8, kvHeads: 2, headDim: 16, blockSize: 8, topK: 3 },
  {
    name: "several sequences, some empty",
    lengths: [0, 19, 0, 1, 30, 0],
    heads: 4,
    kvHeads: 2,
    headDim: 8,
    blockSize: 8,
    topK: 2,
  },
  { name: "one empty sequence", lengths: [0], heads: 2, kvHeads: 1, headDim: 8, blockSize: 8, topK: 2 },
  { name: "no sequence", lengths: [], heads: 2, kvHeads: 1, headDim: 8, blockSize: 8, topK: 2 },
  {
    name: "Nq < Nk",
    lengths: [7, 1, 20],
    keyLengths: [41, 30, 33],
    heads: 4,
    kvHeads: 2,
    headDim: 8,
    blockSize: 8,
    topK: 3,
  },
  {
    name: "Nq < Nk, not causal",
    lengths: [17, 9],
    keyLengths: [41, 30],
    heads: 8,
    kvHeads: 4,
    headDim: 8,
    blockSize: 8,
    topK: 3,
    causal: false,
  },
  {
    name: "Nq > Nk: rows without keys",
    lengths: [20, 3, 19],
    keyLengths: [9, 0, 19],
    heads: 4,
    kvHeads: 2,
    headDim: 8,
    blockSize: 4,
    topK: 2,
  },
  {
    name: "Nq > Nk, not causal",
    lengths: [20, 3, 19],
    keyLengths: [9, 0, 19],
    heads: 4,
    kvHeads: 2,
    headDim: 8,
    blockSize: 4,
    topK: 2,
    causal: false,
  },
  {
    name: "one new token",
    lengths: [1],
    keyLengths: [200],
    heads: 8,
    kvHeads: 2,
    headDim: 32,
    blockSize: 16,
    topK: 4,
  },
  {
    name: "one new token of many sequences",
    lengths: new Array<number>(30).fill(1),
    keyLengths: Array.from({ length: 30 }, (_, i) => 3 * i + 1),
    heads: 32,
    kvHeads: 8,
    headDim: 16,
    blockSize: 4,
    topK: 8,
  },
  {
    name: "own scale",
    lengths: [40],
    heads: 2,
    kvHeads: 2,
    headDim: 16,
    blockSize: 8,
    topK: 3,
    scale: 0.7,
  },
  {
    name: "negative scale",
    lengths: [40],
    heads: 2,
    kvHeads: 2,
    headDim: 16,
    blockSize: 8,
    topK: 3,
    scale: -0.3,
  },
  {
    // Every probability is 1/64, exact in every dtype: the output's own rounding is all that may show.
    name: "uniform probabilities",
    lengths: [48],
    keyLengths: [64],
    heads: 4,
    kvHeads: 4,
    headDim: 32,
    blockSize: 64,
    topK: 1,
    causal: false,
    scale: 0,
  },
  {
    // Scores of ±100: exp overflows unless the row's maximum is taken off first.
    name: "large scores",
    lengths: [60],
    heads: 2,
    kvHeads: 2,
    headDim: 16,
    blockSize: 8,
    topK: 3,
    queryFactor: 32,
  },
  {
    name: "random routing",
    lengths: [30, 9],
    keyLengths: [40, 9],
    heads: 4,
    kvHeads: 2,
    headDim: 8,
    blockSize: 8,
    topK: 4,
    randomRouting: true,
  },
  {
    name: "random routing, not causal",
    lengths: [30, 9],
    keyLengths: [40, 9],
    heads: 4,
    kvHeads: 2,
    headDim: 8,
    blockSize: 8,
    topK: 4,
    causal: false,
    randomRouting: true,
  },
  { name: "B = 64, d = 128", lengths: [130], heads: 2, kvHeads: 2, headDim: 128, blockSize: 64, topK: 2 },
  { name: "B = 128, d = 64", lengths: [300], heads: 2, kvHeads: 1, headDim: 64, blockSize: 128, topK: 2 },
  { name: "long", lengths: [700], heads: 1, kvHeads: 1, headDim: 32, blockSize: 32, topK: 4 },
];

/** An attention problem with its data: values of the dtype in float64. */
export interface Problem extends AttentionInputs {
  readonly dtype: FloatDType;
  readonly blockSize: number;
  readonly topK: number;
  readonly causal: boolean;
  /** Gradient of the output, `[T, H, d]`. */
  readonly dOut: Float64Array;
  /** Packing and flags as a caller gives them: what is the default is left out. */
  readonly options: PackedOptions & { causal?: boolean };
  /** The scale as a caller gives it. */
  readonly scaleOption: { scale?: number };
}

/** A case in words, complete enough to repeat it. */
export function describeCase(shape: AttentionCase): string {
  const { name, lengths, keyLengths, heads, kvHeads, headDim, blockSize, topK, causal, scale } = shape;
  return [
    `${name}: N=[${lengths}]`,
    ...(keyLengths ? [`Nk=[${keyLengths}]`] : []),
    `H=${heads} Hkv=${kvHeads} d=${headDim} B=${blockSize} k=${topK}`,
    ...(causal === false ? ["not causal"] : []),
    ...(scale === undefined ? [] : [`scale=${scale}`]),
  ].join(" ");
}

/** Draws a case's data: standard normal, rounded to the dtype. The same for the same seed and case name. */
export function drawProblem(shape: AttentionCase, { dtype, seed }: Pick<Subject, "dtype" | "seed">): Problem {
  const { lengths, keyLengths = lengths, heads, kvHeads, headDim, blockSize, topK } = shape;
  const random = new Random(`${seed} ${shape.name}`);
  const cuSeqlens = cuSeqlensFromLengths(lengths);
  const cuSeqlensK = cuSeqlensFromLengths(keyLengths);
  const draw = (size: number, factor = 1) => random.gaussians(size).map((x) => rounding(dtype)(factor * x));
  const querySize = cuSeqlens[lengths.length] * heads * headDim;
  const keySize = cuSeqlensK[lengths.length] * kvHeads * headDim;
  return {
    dtype,
    q: draw(querySize, shape.queryFactor),
    k: draw(keySize),
    v: draw(keySize),
    dOut: draw(querySize),
    heads,
    kvHeads,
    headDim,
    cuSeqlens,
    cuSeqlensK,
    blockSize,
    topK,
    causal: shape.causal ?? true,
    scale: shape.scale ?? 1 / Math.sqrt(headDim),
    options: {
      ...(lengths.length !== 1 && { cuSeqlens }),
      ...(shape.keyLengths && lengths.length !== 1 && { cuSeqlensK }),
      ...(shape.causal !== undefined && { causal: shape.causal }),
    },
    scaleOption: shape.scale === undefined ? {} : { scale: shape.scale },
  };
}

/** `[T, H, d]` */
export const queryShape = ({ q, heads, headDim }: Problem): readonly number[] => [
  q.length / (heads * headDim),
  heads,
  headDim,
];

/** `[Tk, Hkv, d]` */
export const keyShape = ({ k, kvHeads, headDim }: Problem): readonly number[] => [
  k.length / (kvHeads * headDim),
  kvHeads,
  headDim,
];

/** Queries, keys and values for a backend. */
export function attentionTensors(problem: Problem): Record<"q" | "k" | "v", HostTensor> {
  const { q, k, v, dtype } = problem;
  return {
    q: { values: q, shape: queryShape(problem), dtype },
    k: { values: k, shape: keyShape(problem), dtype },
    v: { values: v, shape: keyShape(problem), dtype },
  };
}

/** Slots a routing of the problem has: `min(k, blocks of the longest sequence)`. */
export const slotsOf = ({ topK, cuSeqlensK, blockSize }: Problem): number =>
  Math.min(topK, blockCount(Math.max(0, ...sequenceLengths(cuSeqlensK)), blockSize));

/** The blocks that a query of a head may choose from, and the one that it must choose. */
export interface RoutingRow {
  /** Row `query·H + head`. */
  readonly row: number;
  readonly sequence: number;
  readonly head: number;
  /** Visible blocks: `0 … blocks − 1`. */
  readonly blocks: number;
  /** The own block of a causal query at `t ≥ 0`, the last visible one; else −1. */
  readonly own: number;
}

/** Every row of a problem's routing. */
export function routingRows(problem: Problem): RoutingRow[] {
  const { cuSeqlens, cuSeqlensK, heads, blockSize, causal } = problem;
  const rows: RoutingRow[] = [];
  for (let sequence = 0; sequence + 1 < cuSeqlens.length; sequence++) {
    const keys = cuSeqlensK[sequence + 1] - cuSeqlensK[sequence];
    for (let query = cuSeqlens[sequence]; query < cuSeqlens[sequence + 1]; query++) {
      const position = query - cuSeqlens[sequence + 1] + keys;
      const own = causal ? Math.max(-1, Math.floor(position / blockSize)) : -1;
      const blocks = causal ? own + 1 : blockCount(keys, blockSize);
      for (let head = 0; head < heads; head++) {
        rows.push({ row: query * heads + head, sequence, head, blocks, own });
      }
    }
  }
  return rows;
}

/** A routing that no score explains: random visible blocks, any number of them, in random slots; the own block where it must be. */
export function randomRouting(problem: Problem, random: Random): BlockRouting {
  const { blockSize, causal } = problem;
  const slots = slotsOf(problem);
  const rows = routingRows(problem);
  const indices = new Int32Array(rows.length * slots).fill(-1);
  for (const { row, blocks, own } of rows) {
    const others = Array.from({ length: own >= 0 ? own : blocks }, (_, block) => block);
    const free = slots - (own >= 0 ? 1 : 0);
    const chosen = random.shuffled(others).slice(0, random.integer(0, free));
    if (own >= 0) chosen.push(own);
    const unused = new Array<number>(slots - chosen.length).fill(-1);
    indices.set(random.shuffled([...chosen, ...unused]), row * slots);
  }
  return { indices, slots, blockSize, causal };
}
