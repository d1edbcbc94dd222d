import { checkDType, type DType, FLOAT_DTYPES, type FloatDType } from "./dtype.js";
import { ArgumentError, DTypeError, ShapeError, UnsupportedError } from "./errors.js";
import { DeviceMemory } from "./memory.js";
import { checkExtents, checkFlag, checkOptions, checkPositiveInteger, checkTensor } from "./problem.js";
import type { Tensor } from "./tensor.js";

/** The operations of a network's layers, its loss and its optimizer, by the names that `Backend.supports` takes. */
export type NeuralOperation =
  | "matmul"
  | "embedding"
  | "embeddingBackward"
  | "rmsNorm"
  | "rmsNormBackward"
  | "swiglu"
  | "swigluBackward"
  | "rope"
  | "crossEntropy"
  | "crossEntropyBackward"
  | "add"
  | "sum"
  | "sumSquares"
  | "cast"
  | "adamw";

/** Every neural operation, in the order of the class. */
export const NEURAL_OPERATIONS: readonly NeuralOperation[] = [
  "matmul",
  "embedding",
  "embeddingBackward",
  "rmsNorm",
  "rmsNormBackward",
  "swiglu",
  "swigluBackward",
  "rope",
  "crossEntropy",
  "crossEntropyBackward",
  "add",
  "sum",
  "sumSquares",
  "cast",
  "adamw",
];

/** Which factors of a product are read transposed. */
export interface MatmulOptions {
  /** Use `aᵀ`. Default false. */
  transposeA?: boolean;
  /** Use `bᵀ`. Default false. */
  transposeB?: boolean;
}

/** A checked product `[M, K] · [K, N]`, factors as stored. */
export interface MatmulProblem {
  readonly a: Tensor<FloatDType>;
  readonly b: Tensor<FloatDType>;
  readonly transposeA: boolean;
  readonly transposeB: boolean;
  /** `M`, rows of the result. */
  readonly rows: number;
  /** `N`, columns of the result. */
  readonly columns: number;
  /** `K`, the extent that is summed over. */
  readonly inner: number;
}

/** Options of {@link NeuralOperations.rmsNorm}. */
export interface RmsNormOptions {
  /** `ε`, added to the mean square. Default 1e-6. */
  epsilon?: number;
}

/** A checked root-mean-square normalization. */
export interface RmsNormProblem {
  readonly x: Tensor<FloatDType>;
  readonly weight: Tensor<FloatDType>;
  readonly epsilon: number;
}

/** Options of {@link NeuralOperations.rope}. */
export interface RopeOptions {
  /** Base of the frequencies. Default 10000. */
  base?: number;
  /** Turn backwards: the inverse, and so the gradient, of the rotation. Default false. */
  inverse?: boolean;
}

/** A checked rotary embedding. */
export interface RopeProblem {
  readonly x: Tensor<FloatDType>;
  readonly positions: Tensor<"i32">;
  readonly base: number;
  readonly inverse: boolean;
}

/** The result of {@link NeuralOperations.crossEntropy}. */
export interface CrossEntropyResult {
  /** Loss of each token in nats, float32 `[T]`; 0 where the target is −1. */
  loss: Tensor<"f32">;
  /** Natural log-sum-exp of each row of logits, float32 `[T]`. */
  lse: Tensor<"f32">;
}

/** A checked loss. */
export interface CrossEntropyProblem {
  readonly logits: Tensor<FloatDType>;
  readonly targets: Tensor<"i32">;
}

/** What AdamW remembers of a parameter between steps; both start at zero. Changed in place by each step. */
export interface AdamWState {
  /** `m`, running mean of gradients, float32, shape of the parameter. */
  readonly m: Tensor;
  /** `v`, running mean of squared gradients, float32, shape of the parameter. */
  readonly v: Tensor;
}

/** One step of AdamW. */
export interface AdamWOptions {
  /** `t`, the number of this step, from 1. */
  step: number;
  /** `η`. */
  learningRate: number;
  /** `λ`, decoupled from the gradient. Default 0. */
  weightDecay?: number;
  /** `β₁`. Default 0.9. */
  beta1?: number;
  /** `β₂`. Default 0.95. */
  beta2?: number;
  /** `ε`. Default 1e-8. */
  epsilon?: number;
  /** Multiplies the gradient first: how gradients are clipped. Default 1. */
  gradientScale?: number;
}

/** A checked step of AdamW. */
export interface AdamWProblem extends Required<AdamWOptions> {
  readonly parameter: Tensor<"f32">;
  readonly gradient: Tensor<FloatDType>;
  readonly m: Tensor<"f32">;
  readonly v: Tensor<"f32">;
}

/** Checks that a number is finite and in a range. */
function checkRange(argument: string, value: number, low: number, high: number): number {
  if (typeof value !== "number" || !(value >= low && value <= high)) {
    throw new ArgumentError(argument, value, `a number from ${low} to ${high}`);
  }
  return value;
}

/**
 * The part of a `Backend` that layers, loss and optimizer of a network are made of. Matrices are `[rows, columns]`. Sums
 * are accumulated in at least float32 and in an order that depends on the shapes only, so results repeat bit for bit.
 */
export abstract class NeuralOperations extends DeviceMemory {
  /** Whether an operation of this half is implemented; see `Backend.supports`. */
  abstract supports(operation: NeuralOperation, dtype: DType): boolean;

  #checkSupport(operation: NeuralOperation, dtype: DType): void {
    if (!this.supports(operation, dtype)) throw new UnsupportedError(operation, dtype, this.name);
  }

  /** Checks a float tensor of the shape and dtype of another. */
  #checkLike(argument: string, tensor: Tensor, like: Tensor<FloatDType>, name: string): Tensor<FloatDType> {
    checkTensor(this, argument, tensor, FLOAT_DTYPES);
    if (tensor.dtype !== like.dtype)
      throw new DTypeError(argument, tensor.dtype, `${like.dtype}, as ${name}`);
    checkExtents(argument, tensor, like.shape, `that of ${name}`);
    return tensor;
  }

  #checkTokens(argument: string, tensor: Tensor, tokens: number): Tensor<"i32"> {
    checkTensor(this, argument, tensor, ["i32"], "[T]");
    checkExtents(argument, tensor, [tokens], "[T]");
    return tensor;
  }

  /**
   * The matrix product `C_ij = Σ_k A_ik B_kj`, `A = a` or `aᵀ`, `B = b` or `bᵀ`.
   * @param a `[M, K]`, or `[K, M]` with `transposeA`; f32, f16 or bf16
   * @param b `[K, N]`, or `[N, K]` with `transposeB`; dtype of `a`
   * @returns `[M, N]`, dtype of `a`
   */
  matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor<FloatDType> {
    checkOptions(options);
    const transposeA = checkFlag("transposeA", options.transposeA, false);
    const transposeB = checkFlag("transposeB", options.transposeB, false);
    checkTensor(this, "a", a, FLOAT_DTYPES, transposeA ? "[K, M]" : "[M, K]");
    checkTensor(this, "b", b, FLOAT_DTYPES, transposeB ? "[N, K]" : "[K, N]");
    if (b.dtype !== a.dtype) throw new DTypeError("b", b.dtype, `${a.dtype}, as a`);
    const [rows, inner] = transposeA ? [a.shape[1], a.shape[0]] : a.shape;
    const columns = b.shape[transposeB ? 0 : 1];
    checkExtents("b", b, transposeB ? [columns, inner] : [inner, columns], transposeB ? "[N, K]" : "[K, N]");
    this.#checkSupport("matmul", a.dtype);
    return this.produce(
      () => ({ out: this.empty([rows, columns], a.dtype) }),
      ({ out }) => this.runMatmul({ a, b, transposeA, transposeB, rows, columns, inner }, out),
    ).out;
  }

  /**
   * The rows of a table: `out_t = table[indices_t]`; zeros where an index is no row of the table (padding is −1).
   * @param table `[V, C]`, f32, f16 or bf16
   * @param indices int32 `[T]`
   * @returns `[T, C]`, dtype of `table`
   */
  embedding(table: Tensor, indices: Tensor): Tensor<FloatDType> {
    checkTensor(this, "table", table, FLOAT_DTYPES, "[V, C]");
    checkTensor(this, "indices", indices, ["i32"], "[T]");
    this.#checkSupport("embedding", table.dtype);
    return this.produce(
      () => ({ out: this.empty([indices.size, table.shape[1]], table.dtype) }),
      ({ out }) => this.runEmbedding({ table, indices }, out),
    ).out;
  }

  /**
   * Gradient of {@link embedding}: `dTable_v = Σ_{t: indices_t = v} dOut_t`.
   * @param dOut gradient of the result, `[T, C]`, f32, f16 or bf16
   * @param indices int32 `[T]`
   * @param rows `V`
   * @returns `[V, C]`, dtype of `dOut`
   */
  embeddingBackward(dOut: Tensor, indices: Tensor, rows: number): Tensor<FloatDType> {
    checkTensor(this, "dOut", dOut, FLOAT_DTYPES, "[T, C]");
    const checked = this.#checkTokens("indices", indices, dOut.shape[0]);
    checkPositiveInteger("rows", rows);
    this.#checkSupport("embeddingBackward", dOut.dtype);
    return this.produce(
      () => ({ dTable: this.empty([rows, dOut.shape[1]], dOut.dtype) }),
      ({ dTable }) => this.runEmbeddingBackward({ dOut, indices: checked }, dTable),
    ).dTable;
  }

  #checkRmsNorm(x: Tensor, weight: Tensor, options: RmsNormOptions): RmsNormProblem {
    checkOptions(options);
    checkTensor(this, "x", x, FLOAT_DTYPES, "[T, C]");
    checkTensor(this, "weight", weight, FLOAT_DTYPES, "[C]");
    if (weight.dtype !== x.dtype) throw new DTypeError("weight", weight.dtype, `${x.dtype}, as x`);
    checkExtents("weight", weight, [x.shape[1]], "[C]");
    const epsilon = checkRange("epsilon", options.epsilon ?? 1e-6, 0, Number.MAX_VALUE);
    return { x, weight, epsilon };
  }

  /**
   * Root-mean-square normalization of each row (arXiv 1910.07467): `out_t = w ⊙ x_t / r_t`,
   * `r_t = sqrt(mean_c x_tc² + ε)`.
   * @param x `[T, C]`, f32, f16 or bf16
   * @param weight `w`, `[C]`, dtype of `x`
   * @returns shape and dtype of `x`
   */
  rmsNorm(x: Tensor, weight: Tensor, options: RmsNormOptions = {}): Tensor<FloatDType> {
    const problem = this.#checkRmsNorm(x, weight, options);
    this.#checkSupport("rmsNorm", problem.x.dtype);
    return this.produce(
      () => ({ out: this.empty(x.shape, problem.x.dtype) }),
      ({ out }) => this.runRmsNorm(problem, out),
    ).out;
  }

  /**
   * Gradients of {@link rmsNorm}. With `n_t = x_t / r_t` and `g_t = w ⊙ dOut_t`:
   * `dx_t = (g_t − n_t mean_c(g_tc n_tc)) / r_t`, `dWeight = Σ_t dOut_t ⊙ n_t`.
   * @param dOut gradient of the result, shape and dtype of `x`
   * @returns `dx` like `x`, `dWeight` like `weight`
   */
  rmsNormBackward(
    dOut: Tensor,
    x: Tensor,
    weight: Tensor,
    options: RmsNormOptions = {},
  ): { dx: Tensor<FloatDType>; dWeight: Tensor<FloatDType> } {
    const problem = this.#checkRmsNorm(x, weight, options);
    const gradient = this.#checkLike("dOut", dOut, problem.x, "x");
    const { dtype } = problem.x;
    this.#checkSupport("rmsNormBackward", dtype);
    return this.produce(
      () => ({ dx: this.empty(x.shape, dtype), dWeight: this.empty(weight.shape, dtype) }),
      (outputs) => this.runRmsNormBackward({ ...problem, dOut: gradient }, outputs),
    );
  }

  /**
   * The gate of a SwiGLU layer (arXiv 2002.05202): `out = SiLU(gate) ⊙ up`, `SiLU(z) = z σ(z)`.
   * @param gate any shape, f32, f16 or bf16
   * @param up shape and dtype of `gate`
   * @returns shape and dtype of `gate`
   */
  swiglu(gate: Tensor, up: Tensor): Tensor<FloatDType> {
    checkTensor(this, "gate", gate, FLOAT_DTYPES);
    const other = this.#checkLike("up", up, gate, "gate");
    this.#checkSupport("swiglu", gate.dtype);
    return this.produce(
      () => ({ out: this.empty(gate.shape, gate.dtype) }),
      ({ out }) => this.runSwiglu({ gate, up: other }, out),
    ).out;
  }

  /**
   * Gradients of {@link swiglu}: `dGate = dOut ⊙ up ⊙ σ(gate)(1 + gate(1 − σ(gate)))`, `dUp = dOut ⊙ SiLU(gate)`.
   * @param dOut gradient of the result, shape and dtype of `gate`
   */
  swigluBackward(
    dOut: Tensor,
    gate: Tensor,
    up: Tensor,
  ): { dGate: Tensor<FloatDType>; dUp: Tensor<FloatDType> } {
    checkTensor(this, "gate", gate, FLOAT_DTYPES);
    const problem = {
      gate,
      up: this.#checkLike("up", up, gate, "gate"),
      dOut: this.#checkLike("dOut", dOut, gate, "gate"),
    };
    this.#checkSupport("swigluBackward", gate.dtype);
    return this.produce(
      () => ({ dGate: this.empty(gate.shape, gate.dtype), dUp: this.empty(gate.shape, gate.dtype) }),
      (outputs) => this.runSwigluBackward(problem, outputs),
    );
  }

  /**
   * Rotary position embedding (arXiv 2104.09864), halves paired: channel `c < d/2` and channel `c + d/2` of each head turn by
   * `θ = position · base^(−2c/d)`: `out_c = x_c cos θ − x_{c+d/2} sin θ`, `out_{c+d/2} = x_c sin θ + x_{c+d/2} cos θ`.
   * The rotation is orthogonal, so its gradient is its inverse: `dx = rope(dOut, positions, { inverse: true })`.
   * @param x `[T, H, d]`, d even; f32, f16 or bf16
   * @param positions int32 `[T]`
   * @returns shape and dtype of `x`
   */
  rope(x: Tensor, positions: Tensor, options: RopeOptions = {}): Tensor<FloatDType> {
    checkOptions(options);
    checkTensor(this, "x", x, FLOAT_DTYPES, "[T, H, d]");
    if (x.shape[2] % 2 !== 0) throw new ShapeError("x", x.shape, "[T, H, d] with d even");
    const problem = {
      x,
      positions: this.#checkTokens("positions", positions, x.shape[0]),
      base: checkRange("base", options.base ?? 10000, 1, Number.MAX_VALUE),
      inverse: checkFlag("inverse", options.inverse, false),
    };
    this.#checkSupport("rope", x.dtype);
    return this.produce(
      () => ({ out: this.empty(x.shape, x.dtype) }),
      ({ out }) => this.runRope(problem, out),
    ).out;
  }

  #checkCrossEntropy(logits: Tensor, targets: Tensor): CrossEntropyProblem {
    checkTensor(this, "logits", logits, FLOAT_DTYPES, "[T, V]");
    if (logits.shape[1] < 1) throw new ShapeError("logits", logits.shape, "[T, V] with V ≥ 1");
    return { logits, targets: this.#checkTokens("targets", targets, logits.shape[0]) };
  }

  /**
   * Softmax cross-entropy of each token: `loss_t = lse_t − logits_{t, y_t}`, `lse_t = log Σ_v exp(logits_tv)`.
   * @param logits `[T, V]`, f32, f16 or bf16
   * @param targets `y`, int32 `[T]`; −1, or whatever is no column of the logits, is ignored: loss 0, no gradient
   */
  crossEntropy(logits: Tensor, targets: Tensor): CrossEntropyResult {
    const problem = this.#checkCrossEntropy(logits, targets);
    this.#checkSupport("crossEntropy", problem.logits.dtype);
    const [tokens] = logits.shape;
    return this.produce(
      () => ({ loss: this.empty([tokens], "f32"), lse: this.empty([tokens], "f32") }),
      (outputs) => this.runCrossEntropy(problem, outputs),
    );
  }

  /**
   * Gradient of {@link crossEntropy}: `dLogits_tv = dLoss_t (exp(logits_tv − lse_t) − [v = y_t])`, zero where the target is
   * ignored.
   * @param dLoss gradient of `loss`, float32 `[T]`
   * @param lse the result of `crossEntropy`
   * @returns shape and dtype of `logits`
   */
  crossEntropyBackward(dLoss: Tensor, logits: Tensor, targets: Tensor, lse: Tensor): Tensor<FloatDType> {
    const problem = this.#checkCrossEntropy(logits, targets);
    const { dtype, shape } = problem.logits;
    checkTensor(this, "dLoss", dLoss, ["f32"], "[T]");
    checkExtents("dLoss", dLoss, [shape[0]], "[T]");
    checkTensor(this, "lse", lse, ["f32"], "[T]");
    checkExtents("lse", lse, [shape[0]], "[T]");
    this.#checkSupport("crossEntropyBackward", dtype);
    return this.produce(
      () => ({ dLogits: this.empty(shape, dtype) }),
      ({ dLogits }) => this.runCrossEntropyBackward({ ...problem, dLoss, lse }, dLogits),
    ).dLogits;
  }

  /**
   * The sum `a + b`, element by element.
   * @param a any shape, f32, f16 or bf16
   * @param b shape and dtype of `a`
   */
  add(a: Tensor, b: Tensor): Tensor<FloatDType> {
    checkTensor(this, "a", a, FLOAT_DTYPES);
    const other = this.#checkLike("b", b, a, "a");
    this.#checkSupport("add", a.dtype);
    return this.produce(
      () => ({ out: this.empty(a.shape, a.dtype) }),
      ({ out }) => this.runAdd({ a, b: other }, out),
    ).out;
  }

  /**
   * The sum of all elements, `Σ x`.
   * @param x any shape, f32, f16 or bf16
   * @returns float32 scalar, shape `[]`
   */
  sum(x: Tensor): Tensor<"f32"> {
    checkTensor(this, "x", x, FLOAT_DTYPES);
    this.#checkSupport("sum", x.dtype);
    return this.produce(
      () => ({ out: this.empty([], "f32") }),
      ({ out }) => this.runSum(x, out),
    ).out;
  }

  /**
   * The sum of the squares of all elements, `Σ x²`: what the norm of a gradient is made of.
   * @param x any shape, f32, f16 or bf16
   * @returns float32 scalar, shape `[]`
   */
  sumSquares(x: Tensor): Tensor<"f32"> {
    checkTensor(this, "x", x, FLOAT_DTYPES);
    this.#checkSupport("sumSquares", x.dtype);
    return this.produce(
      () => ({ out: this.empty([], "f32") }),
      ({ out }) => this.runSumSquares(x, out),
    ).out;
  }

  /**
   * A copy in another float dtype, rounded to nearest, ties to even.
   * @param x any shape, f32, f16 or bf16; both dtypes must be supported
   */
  cast<D extends FloatDType>(x: Tensor, dtype: D): Tensor<D> {
    checkTensor(this, "x", x, FLOAT_DTYPES);
    checkDType("dtype", dtype, FLOAT_DTYPES);
    this.#checkSupport("cast", x.dtype);
    this.#checkSupport("cast", dtype);
    return this.produce(
      () => ({ out: this.empty(x.shape, dtype) }),
      ({ out }) => this.runCast(x, out),
    ).out;
  }

  /**
   * One step of AdamW (arXiv 1711.05101), in place. With `g = gradientScale · gradient`:
   * `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`,
   * `p ← p − η (m̂ / (sqrt(v̂) + ε) + λp)`, `m̂ = m / (1 − β₁ᵗ)`, `v̂ = v / (1 − β₂ᵗ)`.
   * @param parameter `p`, float32, any shape: changed
   * @param gradient f32, f16 or bf16, shape of the parameter
   * @param state changed
   */
  adamw(parameter: Tensor, gradient: Tensor, state: AdamWState, options: AdamWOptions): void {
    checkOptions(options);
    checkTensor(this, "parameter", parameter, ["f32"]);
    checkTensor(this, "gradient", gradient, FLOAT_DTYPES);
    if (typeof state !== "object" || state === null)
      throw new ArgumentError("state", state, "an object { m, v }");
    const { m, v } = state;
    checkTensor(this, "state.m", m, ["f32"]);
    checkTensor(this, "state.v", v, ["f32"]);
    checkExtents("gradient", gradient, parameter.shape, "that of parameter");
    checkExtents("state.m", m, parameter.shape, "that of parameter");
    checkExtents("state.v", v, parameter.shape, "that of parameter");
    checkPositiveInteger("step", options.step);
    const huge = Number.MAX_VALUE;
    const problem = {
      parameter,
      gradient,
      m,
      v,
      step: options.step,
      learningRate: checkRange("learningRate", options.learningRate, 0, huge),
      weightDecay: checkRange("weightDecay", options.weightDecay ?? 0, 0, huge),
      beta1: checkRange("beta1", options.beta1 ?? 0.9, 0, 1 - Number.EPSILON),
      beta2: checkRange("beta2", options.beta2 ?? 0.95, 0, 1 - Number.EPSILON),
      epsilon: checkRange("epsilon", options.epsilon ?? 1e-8, 0, huge),
      gradientScale: checkRange("gradientScale", options.gradientScale ?? 1, -huge, huge),
    };
    this.#checkSupport("adamw", gradient.dtype);
    this.runAdamW(problem);
  }

  // ---- kernels: what a backend overrides -------------------------------------------------------------------------

  /** Computes {@link matmul} into the output. */
  protected runMatmul(problem: MatmulProblem, _out: Tensor<FloatDType>): void {
    throw new UnsupportedError("matmul", problem.a.dtype, this.name);
  }
  /** Computes {@link embedding} into the output. */
  protected runEmbedding(
    problem: { table: Tensor<FloatDType>; indices: Tensor<"i32"> },
    _out: Tensor<FloatDType>,
  ): void {
    throw new UnsupportedError("embedding", problem.table.dtype, this.name);
  }
  /** Computes {@link embeddingBackward} into the output. */
  protected runEmbeddingBackward(
    problem: { dOut: Tensor<FloatDType>; indices: Tensor<"i32"> },
    _dTable: Tensor<FloatDType>,
  ): void {
    throw new UnsupportedError("embeddingBackward", problem.dOut.dtype, this.name);
  }
  /** Computes {@link rmsNorm} into the output. */
  protected runRmsNorm(problem: RmsNormProblem, _out: Tensor<FloatDType>): void {
    throw new UnsupportedError("rmsNorm", problem.x.dtype, this.name);
  }
  /** Computes {@link rmsNormBackward} into the outputs. */
  protected runRmsNormBackward(
    problem: RmsNormProblem & { dOut: Tensor<FloatDType> },
    _outputs: { dx: Tensor<FloatDType>; dWeight: Tensor<FloatDType> },
  ): void {
    throw new UnsupportedError("rmsNormBackward", problem.x.dtype, this.name);
  }
  /** Computes {@link swiglu} into the output. */
  protected runSwiglu(
    problem: { gate: Tensor<FloatDType>; up: Tensor<FloatDType> },
    _out: Tensor<FloatDType>,
  ): void {
    throw new UnsupportedError("swiglu", problem.gate.dtype, this.name);
  }
  /** Computes {@link swigluBackward} into the outputs. */
  protected runSwigluBackward(
    problem: { dOut: Tensor<FloatDType>; gate: Tensor<FloatDType>; up: Tensor<FloatDType> },
    _outputs: { dGate: Tensor<FloatDType>; dUp: Tensor<FloatDType> },
  ): void {
    throw new UnsupportedError("swigluBackward", problem.gate.dtype, this.name);
  }
  /** Computes {@link rope} into the output. */
  protected runRope(problem: RopeProblem, _out: Tensor<FloatDType>): void {
    throw new UnsupportedError("rope", problem.x.dtype, this.name);
  }
  /** Computes {@link crossEntropy} into the outputs. */
  protected runCrossEntropy(problem: CrossEntropyProblem, _outputs: CrossEntropyResult): void {
    throw new UnsupportedError("crossEntropy", problem.logits.dtype, this.name);
  }
  /** Computes {@link crossEntropyBackward} into the output. */
  protected runCrossEntropyBackward(
    problem: CrossEntropyProblem & { dLoss: Tensor<"f32">; lse: Tensor<"f32"> },
    _dLogits: Tensor<FloatDType>,
  ): void {
    throw new UnsupportedError("crossEntropyBackward", problem.logits.dtype, this.name);
  }
  /** Computes {@link add} into the output. */
  protected runAdd(
    problem: { a: Tensor<FloatDType>; b: Tensor<FloatDType> },
    _out: Tensor<FloatDType>,
  ): void {
    throw new UnsupportedError("add", problem.a.dtype, this.name);
  }
  /** Computes {@link sum} into the output. */
  protected runSum(x: Tensor<FloatDType>, _out: Tensor<"f32">): void {
    throw new UnsupportedError("sum", x.dtype, this.name);
  }
  /** Computes {@link sumSquares} into the output. */
  protected runSumSquares(x: Tensor<FloatDType>, _out: Tensor<"f32">): void {
    throw new UnsupportedError("sumSquares", x.dtype, this.name);
  }
  /** Computes {@link cast} into the output. */
  protected runCast(x: Tensor<FloatDType>, _out: Tensor<FloatDType>): void {
    throw new UnsupportedError("cast", x.dtype, this.name);
  }
  /** Computes {@link adamw} in place. */
  protected runAdamW(problem: AdamWProblem): void {
    throw new UnsupportedError("adamw", problem.gradient.dtype, this.name);
  }
}
