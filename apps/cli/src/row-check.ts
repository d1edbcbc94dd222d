import { type AttentionInputs, attendBlocks, centroids, denseAttention } from "@moba-js/reference";
import { type Backend, type FloatDType, type MobaOptions, roundTo, type Tensor } from "@moba-js/tensor";
import { type Generator, integer } from "./random.js";

/** An error and the most that it may be. */
export interface Judged {
  readonly error: number;
  readonly bound: number;
}

/** How far sampled rows of causal self-attention are from the float64 oracle. */
export interface RowCheck {
  /** Sampled tokens; all their heads are looked at. */
  readonly rows: number;
  /** Dense attention, `‖x − ref‖ / ‖ref‖`. */
  readonly dense: Judged;
  /** MoBA, on the backend's own routing. */
  readonly moba: Judged;
  /** The most by which an unselected block's score beats a selected one's, as a share of `‖q‖·max‖centroid‖`. */
  readonly routing: Judged;
  readonly passed: boolean;
}

/** Tensors of one sequence: `q [N, H, d]`, `k` and `v` `[N, Hkv, d]`. */
export interface AttentionTensors {
  readonly q: Tensor<FloatDType>;
  readonly k: Tensor<FloatDType>;
  readonly v: Tensor<FloatDType>;
}

const UNIT_ROUNDOFF: Readonly<Record<FloatDType, number>> = { f32: 2 ** -24, f16: 2 ** -11, bf16: 2 ** -8 };
const F32_BOUND = 1e-5;

/** Low precision may have this many times the error of rounding probabilities and outputs in float64. */
const EMULATION_FACTOR = 1.5;

/** Sums of squares over many rows: a result and its emulation in low precision against the reference. */
class Comparison {
  #reference = 0;
  #difference = 0;
  #emulatedDifference = 0;

  add(actual: Float64Array, reference: Float64Array, emulated: Float64Array): void {
    for (let i = 0; i < reference.length; i++) {
      this.#reference += reference[i] ** 2;
      this.#difference += (actual[i] - reference[i]) ** 2;
      this.#emulatedDifference += (emulated[i] - reference[i]) ** 2;
    }
  }

  judge(dtype: FloatDType): Judged {
    const relative = (difference: number) => Math.sqrt(difference / this.#reference);
    const bound = dtype === "f32" ? F32_BOUND : EMULATION_FACTOR * relative(this.#emulatedDifference);
    return { error: relative(this.#difference), bound };
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
  const lowestChosen = Math.min(...others.map((block) => scores[block]));
  const highestOther = Math.max(...scores.filter((_, block) => !others.includes(block)));
  if (highestOther <= lowestChosen) return 0;
  return (highestOther - lowestChosen) / (norm(query) * Math.max(...means.map(norm)));
}

/** A finished run on the host. */
interface HostRun {
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
  readonly dense: Float64Array;
  readonly moba: Float64Array;
  /** `[N, H, slots]` */
  readonly indices: Int32Array;
}

/** Runs dense attention and MoBA once, causal, outputs poisoned first. */
async function runOnce(
  backend: Backend,
  { q, k, v }: AttentionTensors,
  options: MobaOptions,
): Promise<HostRun> {
  const { poisonOutputs } = backend.debug;
  backend.debug.poisonOutputs = true;
  const results = backend.scope(() => ({
    dense: backend.attention(q, k, v).out,
    moba: backend.moba(q, k, v, options),
  }));
  backend.debug.poisonOutputs = poisonOutputs;
  using dense = results.dense;
  using moba = results.moba.out;
  using _lse = results.moba.lse;
  using routing = results.moba.routing;
  return {
    q: await q.values(),
    k: await k.values(),
    v: await v.values(),
    dense: await dense.values(),
    moba: await moba.values(),
    indices: await routing.indices.data(),
  };
}

/**
 * Runs dense attention and MoBA once, causal, and compares some rows with the oracle: the last token and random others.
 * The bounds are those of the conformance suite.
 */
export async function checkRows(
  backend: Backend,
  tensors: AttentionTensors,
  options: MobaOptions,
  rows: number,
  random: Generator,
): Promise<RowCheck> {
  const { blockSize, topK } = options;
  const { dtype } = tensors.q;
  const [tokens, heads, headDim] = tensors.q.shape;
  const kvHeads = tensors.k.shape[1];
  const run = await runOnce(backend, tensors, options);
  const slots = run.indices.length / (tokens * heads);
  const round = (x: number): number => roundTo(dtype, x);
  const means = centroids({ k: run.k, kvHeads, headDim, cuSeqlens: Int32Array.of(0, tokens), blockSize });
  const dense = new Comparison();
  const moba = new Comparison();
  let routingError = 0;
  for (let sample = 0; sample < rows; sample++) {
    const token = sample === 0 ? tokens - 1 : integer(random, tokens);
    const outputs = [token * heads * headDim, (token + 1) * heads * headDim] as const;
    const keys = (token + 1) * kvHeads * headDim;
    // The token's attention is that of a sequence that ends with it.
    const inputs: AttentionInputs & { causal: boolean } = {
      q: run.q.subarray(...outputs),
      k: run.k.subarray(0, keys),
      v: run.v.subarray(0, keys),
      heads,
      kvHeads,
      headDim,
      cuSeqlens: Int32Array.of(0, 1),
      cuSeqlensK: Int32Array.of(0, token + 1),
      scale: 1 / Math.sqrt(headDim),
      causal: true,
    };
    const indices = run.indices.subarray(token * heads * slots, (token + 1) * heads * slots);
    const routed = { ...inputs, routing: { indices, slots, blockSize, causal: true } };
    const denseReference = denseAttention(inputs).out;
    const mobaReference = attendBlocks(routed).out;
    dense.add(run.dense.subarray(...outputs), denseReference, denseAttention({ ...inputs, round }).out);
    moba.add(run.moba.subarray(...outputs), mobaReference, attendBlocks({ ...routed, round }).out);

    const own = Math.floor(token / blockSize);
    for (let head = 0; head < heads; head++) {
      const kvHead = Math.floor((head * kvHeads) / heads);
      const before = Array.from({ length: own }, (_, block) => {
        const begin = (block * kvHeads + kvHead) * headDim;
        return means.subarray(begin, begin + headDim);
      });
      const query = inputs.q.subarray(head * headDim, (head + 1) * headDim);
      const chosen = [...indices.subarray(head * slots, (head + 1) * slots)].filter((block) => block !== -1);
      routingError = Math.max(routingError, selectionError(query, before, chosen, topK));
    }
  }
  const judged = {
    dense: dense.judge(dtype),
    moba: moba.judge(dtype),
    routing: { error: routingError, bound: dtype === "f32" ? F32_BOUND : UNIT_ROUNDOFF[dtype] },
  };
  return { rows, ...judged, passed: Object.values(judged).every(({ error, bound }) => error <= bound) };
}
