import { DECODING_OPERATIONS, type DecodingOperation, DecodingOperations } from "./decoding.js";
import { checkShape, type DType, FLOAT_DTYPES, type FloatDType, sizeOf } from "./dtype.js";
import { ArgumentError, DeviceError, DTypeError, ShapeError, UnsupportedError } from "./errors.js";
import { NEURAL_OPERATIONS, type NeuralOperation } from "./neural.js";
import { type CuSeqlens, type CuSeqlensInput, checkCuSeqlens, cuBlocks } from "./packed.js";
import {
  type AttentionOptions,
  type AttentionProblem,
  type CreateRoutingOptions,
  checkAttention,
  checkExtents,
  checkFlag,
  checkKeyConv,
  checkOptions,
  checkPacking,
  checkPositiveInteger,
  checkRoute,
  checkTensor,
  type KeyConvProblem,
  type MobaOptions,
  type RouteOptions,
  type RouteProblem,
  type WindowAttentionOptions,
} from "./problem.js";
import { checkRoutingIndices, Routing } from "./routing.js";
import { isTensor, type Tensor } from "./tensor.js";

/** The operations of a backend, by the names that {@link Backend.supports} takes. */
export type Operation =
  | "attention"
  | "attentionBackward"
  | "windowAttention"
  | "windowAttentionBackward"
  | "centroids"
  | "route"
  | "attend"
  | "attendBackward"
  | "keyConv"
  | "keyConvBackward"
  | NeuralOperation
  | DecodingOperation;

/** Every operation, in the order of the class. */
export const OPERATIONS: readonly Operation[] = [
  "attention",
  "attentionBackward",
  "windowAttention",
  "windowAttentionBackward",
  "centroids",
  "route",
  "attend",
  "attendBackward",
  "keyConv",
  "keyConvBackward",
  ...NEURAL_OPERATIONS,
  ...DECODING_OPERATIONS,
];

/** The result of an attention. */
export interface AttentionResult {
  /** Attention output, `[T, H, d]`, dtype of `q`. Rows without a key are zero. */
  out: Tensor<FloatDType>;
  /** Natural log-sum-exp of the scaled scores, float32 `[T, H]`. Rows without a key are −Infinity. */
  lse: Tensor<"f32">;
}

/** The gradients of an attention. */
export interface AttentionGradients {
  /** `[T, H, d]`, dtype of `q`. */
  dq: Tensor<FloatDType>;
  /** `[Tk, Hkv, d]`, dtype of `k`. */
  dk: Tensor<FloatDType>;
  /** `[Tk, Hkv, d]`, dtype of `v`. */
  dv: Tensor<FloatDType>;
}

/** What {@link Backend.centroids} hands to its kernel. */
export interface CentroidsProblem {
  readonly k: Tensor<FloatDType>;
  readonly cuSeqlens: CuSeqlens;
  readonly blockSize: number;
}

/** What {@link Backend.keyConvHistory} hands to its kernel. */
export interface KeyConvHistoryProblem {
  readonly k: Tensor<FloatDType>;
  readonly width: number;
  readonly cuSeqlens: CuSeqlens;
  readonly history?: Tensor<FloatDType>;
}

/** What the gradients of an attention are made of, beside its own problem. */
export interface AttentionBackwardProblem extends AttentionProblem {
  readonly dOut: Tensor<FloatDType>;
  readonly out: Tensor<FloatDType>;
  readonly lse: Tensor<"f32">;
}

/** What {@link Backend.attend} hands to its kernel. */
export interface AttendProblem extends AttentionProblem {
  readonly routing: Routing;
}

/** What {@link Backend.attendBackward} hands to its kernel. */
export interface AttendBackwardProblem extends AttentionBackwardProblem {
  readonly routing: Routing;
}

/**
 * A device that holds tensors and runs operations on them.
 *
 * The public methods check their arguments, make the outputs and hand a checked problem to a `run…` method, which a
 * backend overrides for each operation that it implements; so all backends take and refuse the same input, with the
 * same errors. Operations enqueue and return at once; only reading (`data()`) and `time` wait, and neither blocks
 * the event loop on a device. An operation that throws has changed nothing and made no tensor.
 *
 * Common errors, not repeated below: {@link ArgumentError} for what is no tensor, is disposed or belongs to another
 * backend, and for options out of range; {@link ShapeError}; {@link DTypeError}; {@link UnsupportedError} where
 * {@link supports} says no; {@link DeviceError} when the backend is closed, its device is lost or memory runs out.
 *
 * Non-finite elements follow IEEE arithmetic in the rows that they touch and change no other row.
 */
export abstract class Backend extends DecodingOperations {
  /** Whether an operation is implemented for a dtype of its main inputs. */
  abstract override supports(operation: Operation, dtype: DType): boolean;

  #checkSupport(operation: Operation, dtype: DType): void {
    if (!this.supports(operation, dtype)) throw new UnsupportedError(operation, dtype, this.name);
  }

  #attentionOutputs({ tokens, heads, headDim, dtype }: AttentionProblem) {
    return { out: this.empty([tokens, heads, headDim], dtype), lse: this.empty([tokens, heads], "f32") };
  }

  #checkBackward(
    problem: AttentionProblem,
    dOut: Tensor,
    out: Tensor,
    lse: Tensor,
  ): AttentionBackwardProblem {
    const { q, dtype, tokens, heads } = problem;
    const sameAsQ = (argument: string, tensor: Tensor): Tensor<FloatDType> => {
      checkTensor(this, argument, tensor, FLOAT_DTYPES, "[T, H, d]");
      if (tensor.dtype !== dtype) throw new DTypeError(argument, tensor.dtype, `${dtype}, as q`);
      checkExtents(argument, tensor, q.shape, "that of q");
      return tensor;
    };
    const gradient = sameAsQ("dOut", dOut);
    const output = sameAsQ("out", out);
    checkTensor(this, "lse", lse, ["f32"], "[T, H]");
    checkExtents("lse", lse, [tokens, heads], "[T, H]");
    return { dOut: gradient, out: output, lse, ...problem };
  }

  #gradients({ q, k, dtype }: AttentionProblem) {
    return {
      dq: this.empty(q.shape, dtype),
      dk: this.empty(k.shape, dtype),
      dv: this.empty(k.shape, dtype),
    };
  }

  // ---- operations -----------------------------------------------------------------------------------------------

  /**
   * Dense softmax attention. For query `i` of a sequence with `Nq` queries and `Nk` keys, at position `t = i + Nk − Nq`:
   * `out_i = Σ_j p_ij v_j`, `p_ij = exp(scale·q_i·k_j − lse_i)`, over all `j` (or `j ≤ t` when causal).
   * @param q `[T, H, d]`, f32, f16 or bf16
   * @param k `[Tk, Hkv, d]`, dtype of `q`; `Hkv` divides `H`
   * @param v shape and dtype of `k`
   */
  attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): AttentionResult {
    const problem = checkAttention(this, q, k, v, options);
    const causal = checkFlag("causal", options.causal, true);
    this.#checkSupport("attention", problem.dtype);
    return this.produce(
      () => this.#attentionOutputs(problem),
      (outputs) => this.runAttention({ causal, ...problem }, outputs),
    );
  }

  /**
   * Exact gradients of {@link attention}; equations as in {@link attendBackward}.
   * @param dOut gradient of `out`, shape and dtype of `q`
   * @param out the result of `attention`
   * @param lse the result of `attention`
   */
  attentionBackward(
    dOut: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    options: AttentionOptions = {},
  ): AttentionGradients {
    const problem = this.#checkBackward(checkAttention(this, q, k, v, options), dOut, out, lse);
    const causal = checkFlag("causal", options.causal, true);
    this.#checkSupport("attentionBackward", problem.dtype);
    return this.produce(
      () => this.#gradients(problem),
      (outputs) => this.runAttentionBackward({ causal, ...problem }, outputs),
    );
  }

  /**
   * Sliding-window attention: dense causal attention of each position `t` over the keys at `t − w + 1 … t`.
   * @param q `[T, H, d]`, f32, f16 or bf16
   * @param k `[Tk, Hkv, d]`, dtype of `q`; `Hkv` divides `H`
   * @param v shape and dtype of `k`
   */
  windowAttention(q: Tensor, k: Tensor, v: Tensor, options: WindowAttentionOptions): AttentionResult {
    const problem = checkAttention(this, q, k, v, options);
    checkPositiveInteger("window", options.window);
    this.#checkSupport("windowAttention", problem.dtype);
    return this.produce(
      () => this.#attentionOutputs(problem),
      (outputs) => this.runWindowAttention({ window: options.window, ...problem }, outputs),
    );
  }

  /**
   * Exact gradients of {@link windowAttention}; equations as in {@link attendBackward}.
   * @param dOut gradient of `out`, shape and dtype of `q`
   * @param out the result of `windowAttention`
   * @param lse the result of `windowAttention`
   */
  windowAttentionBackward(
    dOut: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    options: WindowAttentionOptions,
  ): AttentionGradients {
    const problem = this.#checkBackward(checkAttention(this, q, k, v, options), dOut, out, lse);
    checkPositiveInteger("window", options.window);
    this.#checkSupport("windowAttentionBackward", problem.dtype);
    return this.produce(
      () => this.#gradients(problem),
      (outputs) => this.runWindowAttentionBackward({ window: options.window, ...problem }, outputs),
    );
  }

  /**
   * Block centroids: the mean of each block's real keys (arXiv 2511.11571, section 2), accumulated in at least float32.
   * @param k `[Tk, Hkv, d]`, f32, f16 or bf16
   * @returns float32 `[blocks, Hkv, d]`; the blocks of all sequences in a row, as {@link cuBlocks} numbers them
   */
  centroids(k: Tensor, options: { blockSize: number; cuSeqlens?: CuSeqlensInput }): Tensor<"f32"> {
    checkOptions(options);
    checkTensor(this, "k", k, FLOAT_DTYPES, "[Tk, Hkv, d]");
    checkPositiveInteger("blockSize", options.blockSize);
    const [tokens, kvHeads, headDim] = k.shape as [number, number, number];
    const cuSeqlens = checkCuSeqlens("cuSeqlens", options.cuSeqlens, tokens);
    this.#checkSupport("centroids", k.dtype);
    const blocks = cuBlocks(cuSeqlens, options.blockSize).at(-1) as number;
    return this.produce(
      () => ({ centroids: this.empty([blocks, kvHeads, headDim], "f32") }),
      ({ centroids }) => this.runCentroids({ k, cuSeqlens, blockSize: options.blockSize }, centroids),
    ).centroids;
  }

  /**
   * Block routing (arXiv 2511.11571, section 2): each query head chooses blocks by `q · centroid`.
   * Causal, with own block `c = floor(t/B)`: block `c` and the `min(k−1, c)` best of the blocks before it. Not causal: the
   * `min(k, n)` best of all. Equal scores: the lower block wins. A NaN score counts as −Infinity.
   * @param q `[T, H, d]`, f32, f16 or bf16
   * @param k `[Tk, Hkv, d]`, dtype of `q`; `Hkv` divides `H`
   */
  route(q: Tensor, k: Tensor, options: RouteOptions): Routing {
    const problem = checkRoute(this, q, k, options);
    this.#checkSupport("route", problem.dtype);
    const { indices } = this.produce(
      () => ({ indices: this.empty([problem.tokens, problem.heads, problem.slots], "i32") }),
      (outputs) => this.runRoute(problem, outputs.indices),
    );
    return new Routing(indices, problem);
  }

  /**
   * A routing of one's own. See {@link Routing} for what a row must be; rows are checked here, on the host.
   * @param indices int32 values `[T, H, slots]`, −1 in unused slots
   * @param options give `cuSeqlensK` when there are more keys than queries
   * @throws ArgumentError naming the entry that is no visible block, occurs twice, or leaves a causal row without its own block.
   */
  createRouting(
    indices: Int32Array | readonly number[],
    shape: readonly [tokens: number, heads: number, slots: number],
    options: CreateRoutingOptions,
  ): Routing {
    checkOptions(options);
    checkShape("shape", shape);
    if (shape.length !== 3) throw new ShapeError("shape", shape, "[T, H, slots]");
    if (indices?.length !== sizeOf(shape)) {
      throw new ShapeError("shape", shape, `of ${indices?.length} elements, as indices has`);
    }
    checkPositiveInteger("blockSize", options.blockSize);
    const { cuSeqlensK } = options;
    const keyTokens =
      Array.isArray(cuSeqlensK) || cuSeqlensK instanceof Int32Array ? cuSeqlensK.at(-1) : undefined;
    const packing = checkPacking(options, shape[0], keyTokens ?? shape[0]);
    const info = {
      ...packing,
      blockSize: options.blockSize,
      topK: Math.max(1, shape[2]),
      causal: checkFlag("causal", options.causal, true),
    };
    checkRoutingIndices(indices, shape, info);
    return new Routing(this.tensor(indices, shape, "i32"), info);
  }

  /**
   * Attention of each query over the keys of its routed blocks: whole blocks, except a causal query's own block, which
   * it sees up to itself. `out_i = Σ p_ij v_j`, softmax over the union of the attended keys.
   * @param q `[T, H, d]`, f32, f16 or bf16
   * @param k `[Tk, Hkv, d]`, dtype of `q`; `Hkv` divides `H`
   * @param v shape and dtype of `k`
   * @param routing of the same tokens and heads
   */
  attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routing: Routing,
    options: { scale?: number } = {},
  ): AttentionResult {
    const problem = this.#checkAttend(q, k, v, routing, options);
    this.#checkSupport("attend", problem.dtype);
    return this.produce(
      () => this.#attentionOutputs(problem),
      (outputs) => this.runAttend({ routing, ...problem }, outputs),
    );
  }

  /**
   * Exact gradients of {@link attend} for the given routing; none flows through the selection. With
   * `p_ij = exp(scale·q_i·k_j − lse_i)` and `D_i = dOut_i·out_i`:
   * `dv_j = Σ_i p_ij dOut_i`, `ds_ij = p_ij (dOut_i·v_j − D_i)`, `dq_i = scale Σ_j ds_ij k_j`, `dk_j = scale Σ_i ds_ij q_i`.
   * @param dOut gradient of `out`, shape and dtype of `q`
   * @param out the result of `attend`
   * @param lse the result of `attend`
   */
  attendBackward(
    dOut: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    routing: Routing,
    options: { scale?: number } = {},
  ): AttentionGradients {
    const attend = this.#checkAttend(q, k, v, routing, options);
    const problem = this.#checkBackward(attend, dOut, out, lse);
    this.#checkSupport("attendBackward", problem.dtype);
    return this.produce(
      () => this.#gradients(problem),
      (outputs) => this.runAttendBackward({ routing, ...problem }, outputs),
    );
  }

  /**
   * Mixture of Block Attention: {@link route}, then {@link attend} (arXiv 2511.11571, section 2; arXiv 2502.13189). When
   * `k ≥ n` it is dense attention. The routing is part of the result, for the backward pass; dispose it too.
   * @param q `[T, H, d]`, f32, f16 or bf16
   * @param k `[Tk, Hkv, d]`, dtype of `q`; `Hkv` divides `H`
   * @param v shape and dtype of `k`
   */
  moba(q: Tensor, k: Tensor, v: Tensor, options: MobaOptions): AttentionResult & { routing: Routing } {
    return this.scope(() => {
      checkAttention(this, q, k, v, options);
      const routing = this.route(q, k, options);
      const { scale } = options;
      return { ...this.attend(q, k, v, routing, scale === undefined ? {} : { scale }), routing };
    });
  }

  /**
   * Key convolution: depthwise, causal, residual, each sequence by itself (arXiv 2511.11571, section 3 and appendix):
   * `k'_t = k_t + SiLU(Σ_{l=0}^{W−1} w_l ⊙ k_{t−l})`.
   * @param k `[T, Hkv, d]`, f32, f16 or bf16
   * @param weights `[W, Hkv, d]`, dtype of `k`
   * @param options.history the `W−1` keys before each sequence, `[batch, W−1, Hkv, d]`, oldest first: for decoding a stream
   * in pieces. Default: zeros. {@link keyConvHistory} makes the next one.
   * @returns shape and dtype of `k`
   */
  keyConv(
    k: Tensor,
    weights: Tensor,
    options: { cuSeqlens?: CuSeqlensInput; history?: Tensor } = {},
  ): Tensor<FloatDType> {
    const problem = checkKeyConv(this, k, weights, options);
    const { width, kvHeads, headDim, cuSeqlens } = problem;
    const shape = [cuSeqlens.length - 1, width - 1, kvHeads, headDim];
    const history = this.#checkHistory(k, shape, options.history);
    this.#checkSupport("keyConv", problem.dtype);
    return this.produce(
      () => ({ out: this.empty(k.shape, problem.dtype) }),
      ({ out }) => this.runKeyConv({ ...problem, ...(history && { history }) }, out),
    ).out;
  }

  /**
   * The history to give {@link keyConv} for the tokens after these: each sequence's last `W−1` keys, earlier ones taken
   * from `options.history` (default: zeros). Counts as operation `keyConv`.
   * @param k `[T, Hkv, d]`, the keys before convolution
   * @param width `W`, at least 1
   * @returns `[batch, W−1, Hkv, d]`, oldest first, dtype of `k`
   */
  keyConvHistory(
    k: Tensor,
    width: number,
    options: { cuSeqlens?: CuSeqlensInput; history?: Tensor } = {},
  ): Tensor<FloatDType> {
    checkOptions(options);
    checkTensor(this, "k", k, FLOAT_DTYPES, "[T, Hkv, d]");
    checkPositiveInteger("width", width);
    const [tokens, kvHeads, headDim] = k.shape as [number, number, number];
    const cuSeqlens = checkCuSeqlens("cuSeqlens", options.cuSeqlens, tokens);
    const shape = [cuSeqlens.length - 1, width - 1, kvHeads, headDim];
    const history = this.#checkHistory(k, shape, options.history);
    this.#checkSupport("keyConv", k.dtype);
    return this.produce(
      () => ({ next: this.empty(shape, k.dtype) }),
      ({ next }) => this.runKeyConvHistory({ k, width, cuSeqlens, ...(history && { history }) }, next),
    ).next;
  }

  #checkHistory(
    k: Tensor,
    shape: readonly number[],
    history: Tensor | undefined,
  ): Tensor<FloatDType> | undefined {
    if (history === undefined) return undefined;
    checkTensor(this, "history", history, FLOAT_DTYPES, "[batch, W−1, Hkv, d]");
    if (history.dtype !== k.dtype) throw new DTypeError("history", history.dtype, `${k.dtype}, as k`);
    checkExtents("history", history, shape, "[batch, W−1, Hkv, d]");
    return history;
  }

  /**
   * Gradients of {@link keyConv} (without history). With `s_t = Σ_l w_l ⊙ k_{t−l}` and
   * `g_t = dOut_t ⊙ SiLU'(s_t)`: `dk_t = dOut_t + Σ_l w_l ⊙ g_{t+l}`, `dw_l = Σ_t g_t ⊙ k_{t−l}`.
   * @param dOut gradient of the result, shape and dtype of `k`
   * @returns `dk` like `k`, `dWeights` like `weights`
   */
  keyConvBackward(
    dOut: Tensor,
    k: Tensor,
    weights: Tensor,
    options: { cuSeqlens?: CuSeqlensInput } = {},
  ): { dk: Tensor<FloatDType>; dWeights: Tensor<FloatDType> } {
    const problem = checkKeyConv(this, k, weights, options);
    checkTensor(this, "dOut", dOut, FLOAT_DTYPES, "[T, Hkv, d]");
    if (dOut.dtype !== problem.dtype) throw new DTypeError("dOut", dOut.dtype, `${problem.dtype}, as k`);
    checkExtents("dOut", dOut, k.shape, "that of k");
    this.#checkSupport("keyConvBackward", problem.dtype);
    return this.produce(
      () => ({ dk: this.empty(k.shape, problem.dtype), dWeights: this.empty(weights.shape, problem.dtype) }),
      (outputs) => this.runKeyConvBackward({ dOut, ...problem }, outputs),
    );
  }

  #checkAttend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routing: Routing,
    options: { scale?: number },
  ): AttentionProblem {
    checkOptions(options);
    if (!(typeof routing === "object" && routing !== null && isTensor(routing.indices))) {
      throw new ArgumentError("routing", routing, "a Routing");
    }
    checkTensor(this, "routing.indices", routing.indices, ["i32"], "[T, H, slots]");
    const { cuSeqlens, cuSeqlensK, indices } = routing;
    checkTensor(this, "q", q, FLOAT_DTYPES, "[T, H, d]");
    checkTensor(this, "k", k, FLOAT_DTYPES, "[Tk, Hkv, d]");
    const [tokens, heads] = indices.shape as [number, number];
    checkExtents("q", q, [tokens, heads, q.shape[2]], "[T, H, d] of the routing");
    checkExtents("k", k, [cuSeqlensK.at(-1) as number, ...k.shape.slice(1)], "[Tk, Hkv, d] of the routing");
    return checkAttention(this, q, k, v, { ...options, cuSeqlens, cuSeqlensK });
  }

  // ---- kernels: what a backend overrides -------------------------------------------------------------------------

  /** Computes {@link attention} into the outputs. */
  protected runAttention(problem: AttentionProblem & { causal: boolean }, _outputs: AttentionResult): void {
    throw new UnsupportedError("attention", problem.dtype, this.name);
  }
  /** Computes {@link attentionBackward} into the outputs. */
  protected runAttentionBackward(
    problem: AttentionBackwardProblem & { causal: boolean },
    _outputs: AttentionGradients,
  ): void {
    throw new UnsupportedError("attentionBackward", problem.dtype, this.name);
  }
  /** Computes {@link windowAttention} into the outputs. */
  protected runWindowAttention(
    problem: AttentionProblem & { window: number },
    _outputs: AttentionResult,
  ): void {
    throw new UnsupportedError("windowAttention", problem.dtype, this.name);
  }
  /** Computes {@link windowAttentionBackward} into the outputs. */
  protected runWindowAttentionBackward(
    problem: AttentionBackwardProblem & { window: number },
    _outputs: AttentionGradients,
  ): void {
    throw new UnsupportedError("windowAttentionBackward", problem.dtype, this.name);
  }
  /** Computes {@link centroids} into the output. */
  protected runCentroids(problem: CentroidsProblem, _centroids: Tensor<"f32">): void {
    throw new UnsupportedError("centroids", problem.k.dtype, this.name);
  }
  /** Computes the indices of {@link route} into the output. */
  protected runRoute(problem: RouteProblem, _indices: Tensor<"i32">): void {
    throw new UnsupportedError("route", problem.dtype, this.name);
  }
  /** Computes {@link attend} into the outputs. */
  protected runAttend(problem: AttendProblem, _outputs: AttentionResult): void {
    throw new UnsupportedError("attend", problem.dtype, this.name);
  }
  /** Computes {@link attendBackward} into the outputs. */
  protected runAttendBackward(problem: AttendBackwardProblem, _outputs: AttentionGradients): void {
    throw new UnsupportedError("attendBackward", problem.dtype, this.name);
  }
  /** Computes {@link keyConv} into the output. */
  protected runKeyConv(
    problem: KeyConvProblem & { history?: Tensor<FloatDType> },
    _out: Tensor<FloatDType>,
  ): void {
    throw new UnsupportedError("keyConv", problem.dtype, this.name);
  }
  /** Computes {@link keyConvHistory} into the output. */
  protected runKeyConvHistory(problem: KeyConvHistoryProblem, _next: Tensor<FloatDType>): void {
    throw new UnsupportedError("keyConv", problem.k.dtype, this.name);
  }
  /** Computes {@link keyConvBackward} into the outputs. */
  protected runKeyConvBackward(
    problem: KeyConvProblem & { dOut: Tensor<FloatDType> },
    _outputs: { dk: Tensor<FloatDType>; dWeights: Tensor<FloatDType> },
  ): void {
    throw new UnsupportedError("keyConvBackward", problem.dtype, this.name);
  }
}
