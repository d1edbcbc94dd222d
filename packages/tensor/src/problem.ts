import type { Backend } from "./backend.js";
import { checkDType, type DType, FLOAT_DTYPES, type FloatDType } from "./dtype.js";
import { ArgumentError, DTypeError, ShapeError } from "./errors.js";
import type { DeviceMemory } from "./memory.js";
import {
  blockCount,
  type CuSeqlens,
  type CuSeqlensInput,
  checkCuSeqlens,
  sequenceLengths,
} from "./packed.js";
import { isTensor, type Tensor } from "./tensor.js";

/** Options of every operation over packed queries and keys. */
export interface PackedOptions {
  /** Where each sequence's queries begin; keys too, unless `cuSeqlensK` is given. Default: one sequence. */
  cuSeqlens?: CuSeqlensInput;
  /** Where each sequence's keys begin, when not as the queries. */
  cuSeqlensK?: CuSeqlensInput;
}

/** Options of dense attention. */
export interface AttentionOptions extends PackedOptions {
  /** Whether a query sees only keys at or before its position. Default true. */
  causal?: boolean;
  /** Factor of the scores. Default `1/sqrt(d)`. */
  scale?: number;
}

/** Options of sliding-window attention, which is always causal. */
export interface WindowAttentionOptions extends PackedOptions {
  /** `w`: a query at position `t` sees the keys at `t − w + 1 … t`. */
  window: number;
  /** Factor of the scores. Default `1/sqrt(d)`. */
  scale?: number;
}

/** Options of routing. */
export interface RouteOptions extends PackedOptions {
  /** `B`, tokens a block, ≥ 1. */
  blockSize: number;
  /** `k`, blocks a query attends, its own included, ≥ 1. */
  topK: number;
  /** Whether a query sees only its own and earlier blocks. Default true. */
  causal?: boolean;
}

/** Options of MoBA in one call. */
export interface MobaOptions extends RouteOptions {
  /** Factor of the scores in the softmax (routing compares unscaled). Default `1/sqrt(d)`. */
  scale?: number;
}

/** Options of an own pattern: see `Backend.createRouting`. */
export interface CreateRoutingOptions extends PackedOptions {
  /** `B`, tokens a block, ≥ 1. */
  blockSize: number;
  /** Whether a query sees only its own and earlier blocks. Default true. */
  causal?: boolean;
}

/** Queries and keys that fit each other, with everything a kernel needs to know: what the checks leave. */
export interface PackedProblem {
  /** Element type of queries, keys and values. */
  readonly dtype: FloatDType;
  /** `T`, query tokens of the packed batch. */
  readonly tokens: number;
  /** Key tokens of the packed batch. */
  readonly keyTokens: number;
  /** `H`, query heads. */
  readonly heads: number;
  /** `Hkv`, key/value heads. Query head `h` reads key head `floor(h / (H/Hkv))`. */
  readonly kvHeads: number;
  /** `d`. */
  readonly headDim: number;
  /** Where each sequence's queries begin. */
  readonly cuSeqlens: CuSeqlens;
  /** Where each sequence's keys begin. */
  readonly cuSeqlensK: CuSeqlens;
}

/** A checked attention problem: queries, keys and values. */
export interface AttentionProblem extends PackedProblem {
  readonly scale: number;
  readonly q: Tensor<FloatDType>;
  readonly k: Tensor<FloatDType>;
  readonly v: Tensor<FloatDType>;
}

/** A checked routing problem. */
export interface RouteProblem extends PackedProblem {
  readonly blockSize: number;
  readonly topK: number;
  /** Slots a row of the result has: `min(k, blocks of the longest sequence)`. */
  readonly slots: number;
  readonly causal: boolean;
  readonly q: Tensor<FloatDType>;
  readonly k: Tensor<FloatDType>;
}

/** A checked key convolution: keys `[T, Hkv, d]`, weights `[W, Hkv, d]`. */
export interface KeyConvProblem {
  readonly dtype: FloatDType;
  readonly tokens: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** `W`. */
  readonly width: number;
  readonly cuSeqlens: CuSeqlens;
  readonly k: Tensor<FloatDType>;
  readonly weights: Tensor<FloatDType>;
}

/**
 * Checks that a value is a live tensor of this backend. Without `dimensions`, any shape will do.
 * @throws ArgumentError when not, DTypeError for a dtype that is not allowed, ShapeError for another number of dimensions.
 */
export function checkTensor<D extends DType>(
  backend: DeviceMemory,
  argument: string,
  value: Tensor,
  allowed: readonly D[],
  dimensions?: string,
): asserts value is Tensor<D> {
  if (!isTensor(value)) throw new ArgumentError(argument, value, "a tensor");
  if (value.backend !== backend) {
    throw new ArgumentError(argument, value.backend.name, `a tensor of this ${backend.name} backend`);
  }
  if (value.disposed) throw new ArgumentError(argument, "a disposed tensor", "a tensor that is not disposed");
  checkDType(argument, value.dtype, allowed);
  if (dimensions !== undefined && value.shape.length !== rankOf(dimensions))
    throw new ShapeError(argument, value.shape, dimensions);
}

/** The number of dimensions of a shape in words: 3 of "[T, H, d]". */
function rankOf(dimensions: string): number {
  let rank = 1;
  for (let i = 0; i < dimensions.length; i++) if (dimensions[i] === ",") rank += 1;
  return rank;
}

/**
 * Checks that a tensor has exactly this shape; `meaning` names the shape in the message.
 * @throws ShapeError otherwise.
 */
export function checkExtents(
  argument: string,
  tensor: Tensor,
  shape: readonly number[],
  meaning: string,
): void {
  if (tensor.shape.length !== shape.length || shape.some((extent, i) => tensor.shape[i] !== extent)) {
    throw new ShapeError(argument, tensor.shape, `${meaning} = [${shape.join(", ")}]`);
  }
}

/**
 * Checks that a value is an integer ≥ 1 that fits in int32.
 * @throws ArgumentError otherwise.
 */
export function checkPositiveInteger(argument: string, value: number): void {
  if (!Number.isInteger(value) || value < 1 || value > 2 ** 31 - 1) {
    throw new ArgumentError(argument, value, "an integer from 1 to 2^31 - 1");
  }
}

/**
 * Checks that options are an object, for callers that TypeScript does not check.
 * @throws ArgumentError otherwise.
 */
export function checkOptions(value: object): void {
  if (typeof value !== "object" || value === null) throw new ArgumentError("options", value, "an object");
}

/**
 * A boolean option: the value, or `missing` when it is undefined.
 * @throws ArgumentError when it is no boolean.
 */
export function checkFlag(argument: string, value: boolean | undefined, missing: boolean): boolean {
  if (value === undefined) return missing;
  if (typeof value !== "boolean") throw new ArgumentError(argument, value, "a boolean");
  return value;
}

function checkScale(value: number | undefined, headDim: number): number {
  if (value === undefined) return 1 / Math.sqrt(headDim);
  if (!Number.isFinite(value)) throw new ArgumentError("scale", value, "a finite number");
  return value;
}

/** Checks cumulative lengths of queries and keys against each other and the tokens. */
export function checkPacking(
  options: PackedOptions,
  tokens: number,
  keyTokens: number,
): { cuSeqlens: CuSeqlens; cuSeqlensK: CuSeqlens } {
  const cuSeqlens = checkCuSeqlens("cuSeqlens", options.cuSeqlens, tokens);
  if (options.cuSeqlensK === undefined && keyTokens === tokens) return { cuSeqlens, cuSeqlensK: cuSeqlens };
  const cuSeqlensK =
    options.cuSeqlensK === undefined && options.cuSeqlens !== undefined
      ? checkCuSeqlens("cuSeqlens", options.cuSeqlens, keyTokens)
      : checkCuSeqlens("cuSeqlensK", options.cuSeqlensK, keyTokens);
  if (cuSeqlensK.length !== cuSeqlens.length) {
    throw new ArgumentError(
      "cuSeqlensK",
      options.cuSeqlensK,
      `${cuSeqlens.length} entries, as many as cuSeqlens has (${cuSeqlens.length - 1} sequences)`,
    );
  }
  return { cuSeqlens, cuSeqlensK };
}

/** Checks queries `[T, H, d]` against keys `[Tk, Hkv, d]`. */
export function checkPacked(backend: Backend, q: Tensor, k: Tensor, options: PackedOptions): PackedProblem {
  checkOptions(options);
  checkTensor(backend, "q", q, FLOAT_DTYPES, "[T, H, d]");
  checkTensor(backend, "k", k, FLOAT_DTYPES, "[Tk, Hkv, d]");
  const [tokens, heads, headDim] = q.shape as [number, number, number];
  const [keyTokens, kvHeads] = k.shape as [number, number];
  if (k.dtype !== q.dtype) throw new DTypeError("k", k.dtype, `${q.dtype}, as q`);
  if (heads < 1 || headDim < 1) throw new ShapeError("q", q.shape, "[T, H, d] with H ≥ 1 and d ≥ 1");
  if (k.shape[2] !== headDim) throw new ShapeError("k", k.shape, `[Tk, Hkv, ${headDim}], d as in q`);
  if (kvHeads < 1 || heads % kvHeads !== 0) {
    throw new ShapeError("k", k.shape, `[Tk, Hkv, d] with Hkv a divisor of H = ${heads}`);
  }
  const packing = checkPacking(options, tokens, keyTokens);
  return { dtype: q.dtype, tokens, keyTokens, heads, kvHeads, headDim, ...packing };
}

/** Checks queries, keys and values. */
export function checkAttention(
  backend: Backend,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: PackedOptions & { scale?: number | undefined },
): AttentionProblem {
  const packed = checkPacked(backend, q, k, options);
  checkTensor(backend, "v", v, FLOAT_DTYPES, "[Tk, Hkv, d]");
  if (v.dtype !== q.dtype) throw new DTypeError("v", v.dtype, `${q.dtype}, as q`);
  checkExtents("v", v, k.shape, "that of k");
  const [query, key] = [q as Tensor<FloatDType>, k as Tensor<FloatDType>];
  // What is spread comes last, here and elsewhere: V8 takes 30 times as long to add to it.
  return { q: query, k: key, v, scale: checkScale(options.scale, packed.headDim), ...packed };
}

/** Checks a routing problem. */
export function checkRoute(backend: Backend, q: Tensor, k: Tensor, options: RouteOptions): RouteProblem {
  const packed = checkPacked(backend, q, k, options);
  const { blockSize, topK } = options;
  checkPositiveInteger("blockSize", blockSize);
  checkPositiveInteger("topK", topK);
  const blocks = sequenceLengths(packed.cuSeqlensK).map((length) => blockCount(length, blockSize));
  return {
    q: q as Tensor<FloatDType>,
    k: k as Tensor<FloatDType>,
    blockSize,
    topK,
    slots: Math.min(topK, Math.max(0, ...blocks)),
    causal: checkFlag("causal", options.causal, true),
    ...packed,
  };
}

/** Checks keys `[T, Hkv, d]` and convolution weights `[W, Hkv, d]`. */
export function checkKeyConv(
  backend: Backend,
  k: Tensor,
  weights: Tensor,
  options: { cuSeqlens?: CuSeqlensInput },
): KeyConvProblem {
  checkOptions(options);
  checkTensor(backend, "k", k, FLOAT_DTYPES, "[T, Hkv, d]");
  checkTensor(backend, "weights", weights, FLOAT_DTYPES, "[W, Hkv, d]");
  const [tokens, kvHeads, headDim] = k.shape as [number, number, number];
  const width = weights.shape[0];
  if (weights.dtype !== k.dtype) throw new DTypeError("weights", weights.dtype, `${k.dtype}, as k`);
  if (width < 1) throw new ShapeError("weights", weights.shape, "[W, Hkv, d] with W ≥ 1");
  checkExtents("weights", weights, [width, kvHeads, headDim], "[W, Hkv, d]");
  const cuSeqlens = checkCuSeqlens("cuSeqlens", options.cuSeqlens, tokens);
  return { dtype: k.dtype, tokens, kvHeads, headDim, width, cuSeqlens, k, weights };
}
