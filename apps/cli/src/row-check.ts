import { type AttentionInputs, attendBlocks, centroids, denseAttention } from "@moba-js/reference";
import {
  type Backend,
  decode,
  type FloatDType,
  type MobaOptions,
  roundTo,
  sequenceLengths,
  storageArray,
  type Tensor,
  type TypedArray,
} from "@moba-js/tensor";
import { type Generator, integer } from "./random.js";

/** An error and the most that it may be. */
export interface Judged {
  readonly error: number;
  readonly bound: number;
}

/** How far sampled rows of causal attention are from the float64 oracle. */
export interface RowCheck {
  /** Rows, each of one query and head, that were looked at. */
  readonly rows: number;
  /** Dense attention, `‖x − ref‖ / ‖ref‖`; absent where it was not run. */
  readonly dense?: Judged;
  /** MoBA, on the backend's own routing. */
  readonly moba: Judged;
  /** The most by which an unselected block's score beats a selected one's, as a share of `‖q‖·max‖centroid‖`. */
  readonly routing: Judged;
  readonly passed: boolean;
}

/** Tensors of packed sequences: `q [T, H, d]`, `k` and `v` `[Tk, Hkv, d]`. */
export interface AttentionTensors {
  readonly q: Tensor<FloatDType>;
  readonly k: Tensor<FloatDType>;
  readonly v: Tensor<FloatDType>;
}

/** What came of them, on the device: outputs `[T, H, d]`, indices `[T, H, slots]`. */
export interface AttentionOutputs {
  /** Absent where dense attention was not run. */
  readonly dense?: Tensor<FloatDType>;
  readonly moba: Tensor<FloatDType>;
  readonly indices: Tensor<"i32">;
}

/** A row to look at: one query and head, and the keys that the query may see. */
export interface Row {
  /** The query's row in `q`. */
  readonly query: number;
  readonly head: number;
  /** The first row in `k` of the query's sequence. */
  readonly firstKey: number;
  /** Keys up to the query's own position, that included. */
  readonly keys: number;
}

const UNIT_ROUNDOFF: Readonly<Record<FloatDType, number>> = { f32: 2 ** -24, f16: 2 ** -11, bf16: 2 ** -8 };
const F32_BOUND = 1e-5;

/** Low precision may have this many times the error of rounding probabilities and outputs in float64. */
const EMULATION_FACTOR = 1.5;

/** Sums of squares over many rows: a result and its emulations in low precision against the reference. */
export class Comparison {
  #reference = 0;
  #least = 0;
  #difference = 0;
  #emulatedDifference = 0;

  /**
   * @param emulations with errors that are independent of each other
   * @param least what counts as the sum of squares of the reference at least, where terms of some size may cancel to nothing
   */
  add(actual: Float64Array, reference: Float64Array, emulations: readonly Float64Array[], least = 0): void {
    this.#least += least;
    for (let i = 0; i < reference.length; i++) {
      this.#reference += reference[i] ** 2;
      this.#difference += (actual[i] - reference[i]) ** 2;
      for (const emulated of emulations) this.#emulatedDifference += (emulated[i] - reference[i]) ** 2;
    }
  }

  /** @param bound the bound in float32; low precision is never asked for more */
  judge(dtype: FloatDType, bound = F32_BOUND): Judged {
    const squares = Math.max(this.#reference, this.#least);
    const relative = (difference: number) => Math.sqrt(difference / squares);
    const emulated = EMULATION_FACTOR * relative(this.#emulatedDifference);
    return { error: relative(this.#difference), bound: dtype === "f32" ? bound : Math.max(bound, emulated) };
  }
}

const norm = (x: Float64Array): number => Math.sqrt(x.reduce((sum, value) => sum + value * value, 0));

const dotProduct = (x: Float64Array, y: Float64Array): number =>
  x.reduce((sum, value, c) => sum + value * y[c], 0);

/**
 * How wrong a causal row's selection is: 0 when no unselected block beats a selected one, Infinity when it is malformed.
 * @param means the centroid of each block before the own one
 */
function selectionError(
  query: Float64Array,
  means: readonly Float64Array[],
  chosen: readonly number[],
  topK: number,
): number {
  const own = means.length;
  const others = chosen.filter((block) => block !== own);
  const wellFormed =
    others.length === chosen.length - 1 &&
    others.length === Math.min(topK - 1, own) &&
    new Set(others).size === others.length &&
    others.every((block) => block >= 0 && block < own);
  if (!wellFormed) return Number.POSITIVE_INFINITY;
  const scores = means.map((mean) => dotProduct(query, mean));
  const selected = new Set(others);
  const lowestChosen = Math.min(...others.map((block) => scores[block]));
  const highestOther = scores.reduce(
    (highest, score, block) => (selected.has(block) ? highest : Math.max(highest, score)),
    Number.NEGATIVE_INFINITY,
  );
  if (highestOther <= lowestChosen) return 0;
  const largest = means.reduce((most, mean) => Math.max(most, norm(mean)), 0);
  return (highestOther - lowestChosen) / (norm(query) * largest);
}

/** One head's values of some rows of a tensor `[rows, heads, d]` on the host. */
export function headValues(
  data: TypedArray,
  [, heads, headDim]: readonly number[],
  dtype: FloatDType,
  [head, begin, count]: readonly [head: number, begin: number, count: number],
): Float64Array {
  const stored = storageArray(dtype, count * headDim);
  for (let row = 0; row < count; row++) {
    const at = ((begin + row) * heads + head) * headDim;
    stored.set(data.subarray(at, at + headDim), row * headDim);
  }
  return decode(stored, dtype);
}

/** Compares rows of finished causal attention with the oracle. The bounds are those of the conformance suite. */
export async function judgeRows(
  { q, k, v }: AttentionTensors,
  outputs: AttentionOutputs,
  rows: readonly Row[],
  { blockSize, topK }: MobaOptions,
): Promise<RowCheck> {
  const { dtype } = q;
  const [, heads, headDim] = q.shape;
  const kvHeads = k.shape[1];
  const slots = outputs.indices.shape[2];
  const host = { q: await q.data(), k: await k.data(), v: await v.data(), moba: await outputs.moba.data() };
  const hostDense = await outputs.dense?.data();
  const hostIndices = await outputs.indices.data();
  const round = (x: number): number => roundTo(dtype, x);
  const dense = new Comparison();
  const moba = new Comparison();
  let routingError = 0;
  for (const { query, head, firstKey, keys } of rows) {
    const kvHead = Math.floor((head * kvHeads) / heads);
    // The row's attention is that of one query at the end of its keys, with one head.
    const inputs: AttentionInputs & { causal: boolean } = {
      q: headValues(host.q, q.shape, dtype, [head, query, 1]),
      k: headValues(host.k, k.shape, dtype, [kvHead, firstKey, keys]),
      v: headValues(host.v, v.shape, dtype, [kvHead, firstKey, keys]),
      heads: 1,
      kvHeads: 1,
      headDim,
      cuSeqlens: Int32Array.of(0, 1),
      cuSeqlensK: Int32Array.of(0, keys),
      scale: 1 / Math.sqrt(headDim),
      causal: true,
    };
    const outputOf = (data: TypedArray) => headValues(data, q.shape, dtype, [head, query, 1]);
    if (hostDense) {
      const reference = denseAttention(inputs).out;
      dense.add(outputOf(hostDense), reference, [denseAttention({ ...inputs, round }).out]);
    }
    const row = (query * heads + head) * slots;
    const indices = hostIndices.subarray(row, row + slots);
    const routed = { ...inputs, routing: { indices, slots, blockSize, causal: true } };
    moba.add(outputOf(host.moba), attendBlocks(routed).out, [attendBlocks({ ...routed, round }).out]);

    const own = Math.floor((keys - 1) / blockSize);
    const cuSeqlens = Int32Array.of(0, own * blockSize);
    const before = inputs.k.subarray(0, own * blockSize * headDim);
    const means = centroids({ k: before, kvHeads: 1, headDim, cuSeqlens, blockSize });
    const meanOf = (_: unknown, block: number) => means.subarray(block * headDim, (block + 1) * headDim);
    const chosen = [...indices].filter((block) => block !== -1);
    const error = selectionError(inputs.q, Array.from({ length: own }, meanOf), chosen, topK);
    routingError = Math.max(routingError, error);
  }
  const judged = {
    ...(hostDense && { dense: dense.judge(dtype) }),
    moba: moba.judge(dtype),
    routing: { error: routingError, bound: dtype === "f32" ? F32_BOUND : UNIT_ROUNDOFF[dtype] },
  };
  return {
    rows: rows.length,
    ...judged,
    passed: Object.values(judged).every(({ error, bound }) => error <= bound),
  };
}

/** Random rows of causal self-attention: the first is the last token of a sequence. */
function sampleRows(cuSeqlens: Int32Array, heads: number, count: number, random: Generator): Row[] {
  const lengths = sequenceLengths(cuSeqlens);
  return Array.from({ length: count }, (_, i) => {
    const sequence = integer(random, lengths.length);
    const position = i === 0 ? lengths[sequence] - 1 : integer(random, lengths[sequence]);
    const firstKey = cuSeqlens[sequence];
    return { query: firstKey + position, head: integer(random, heads), firstKey, keys: position + 1 };
  });
}

/** Runs operations in a scope, outputs poisoned first. */
export function runPoisoned<T>(backend: Backend, run: () => T): T {
  const { poisonOutputs } = backend.debug;
  backend.debug.poisonOutputs = true;
  try {
    return backend.scope(run);
  } finally {
    backend.debug.poisonOutputs = poisonOutputs;
  }
}

/**
 * Runs causal MoBA over `q`, `k`, `v` once, and dense attention if wanted, outputs poisoned first, and compares sampled rows
 * with the oracle.
 */
export async function checkRows(
  backend: Backend,
  tensors: AttentionTensors,
  options: MobaOptions & { cuSeqlens: Int32Array },
  { rows, dense }: { rows: number; dense: boolean },
  random: Generator,
): Promise<RowCheck> {
  const { q, k, v } = tensors;
  const { cuSeqlens } = options;
  const results = runPoisoned(backend, () => ({
    ...(dense && { dense: backend.attention(q, k, v, { cuSeqlens }).out }),
    moba: backend.moba(q, k, v, options),
  }));
  const { out, lse, routing } = results.moba;
  try {
    const outputs = { ...(results.dense && { dense: results.dense }), moba: out, indices: routing.indices };
    return await judgeRows(tensors, outputs, sampleRows(cuSeqlens, q.shape[1], rows, random), options);
  } finally {
    for (const tensor of [results.dense, out, lse, routing.indices]) tensor?.dispose();
  }
}
