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
  | "linearCrossEntropy"
  | "linearCrossEntropyBackward"
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
  "linearCrossEntropy",
  "linearCrossEntropyBackward",
  "add",
  "sum",
  "sumSquares",
  "cast",
  "adamw",
];

/** Options of {@link NeuralOperations.matmul}. */
export interface MatmulOptions {
  /** Use `aᵀ`. Default false. */
  transposeA?: boolean;
  /** Use `bᵀ`. Default false. */
  transposeB?: boolean;
  /** Added to the product: shape and dtype of the result. Default: nothing. */
  addend?: Tensor;
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

/** Options of {@link NeuralOperations.rmsNormBackward}. */
export interface RmsNormBackwardOptions extends RmsNormOptions {
  /** Added to `dx`: shape and dtype of `x`. Default: nothing. */
  addend?: Tensor;
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

/** A checked loss of logits that are a product, `x weightᵀ`. */
export interface LinearCrossEntropyProblem {
  readonly x: Tensor<FloatDType>;
  readonly weight: Tensor<FloatDType>;
  readonly targets: Tensor<"i32">;
}

/** The result of {@link NeuralOperations.linearCrossEntropyBackward}. */
export interface LinearCrossEntropyGradients {
  /** Loss of each token in nats, float32 `[T]`. */
  loss: Tensor<"f32">;
  /** Like `x`. */
  dx: Tensor<FloatDType>;
  /** Like `weight`. */
  dWeight: Tensor<FloatDType>;
}

/** A parameter that AdamW trains, with its gradient and what AdamW remembers of it between steps. */
export interface AdamWParameter {
  /** `p`, float32, any shape: changed. */
  readonly parameter: Tensor;
  /** `g`, shape of the parameter; f32, f16 or bf16, each its own. */
  readonly gradient: Tensor;
  /** `m`, running mean of gradients, float32, shape of the parameter; zeros before the first step: changed. */
  readonly m: Tensor;
  /** `v`, running mean of squared gradients, float32, shape of the parameter; zeros before the first step: changed. */
  readonly v: Tensor;
  /** `λ`, decoupled from the gradient. Default 0. */
  readonly weightDecay?: number;
}

/** What stays the same from one step of AdamW to the next. */
export interface AdamWOptions {
  /** `β₁`. Default 0.9. */
  beta1?: number;
  /** `β₂`. Default 0.95. */
  beta2?: number;
  /** `ε`. Default 1e-8. */
  epsilon?: number;
  /** The most that the norm of all gradients together may be; longer ones are scaled down. Default: no limit. */
  clipNorm?: number;
}

/** A checked parameter of {@link AdamWProblem}. */
export interface AdamWProblemParameter extends Required<AdamWParameter> {
  readonly parameter: Tensor<"f32">;
  readonly gradient: Tensor<FloatDType>;
  readonly m: Tensor<"f32">;
  readonly v: Tensor<"f32">;
}

/** A checked step of AdamW. */
export interface AdamWProblem extends Required<AdamWOptions> {
  /** At least one. */
  readonly parameters: readonly AdamWProblemParameter[];
  readonly schedule: Tensor<"f32">;
  readonly gradientNorm: Tensor<"f32">;
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
   * The matrix product `C_ij = Σ_k A_ik B_kj`, `A = a` or `aᵀ`, `B = b` or `bᵀ`; or `C + addend`.
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
    const problem = { a, b, transposeA, transposeB, rows, columns, inner };
    const { addend } = options;
    if (addend !== undefined) this.#checkAddend(addend, [rows, columns], a.dtype);
    this.#checkSupport("matmul", a.dtype);
    return this.produce(
      () => ({ out: this.empty([rows, columns], a.dtype) }),
      ({ out }) =>
        addend === undefined
          ? this.runMatmul(problem, out)
          : this.runMatmulAdd({ addend: addend as Tensor<FloatDType>, ...problem }, out),
    ).out;
  }

  #checkAddend(addend: Tensor, shape: readonly number[], dtype: FloatDType): void {
    checkTensor(this, "addend", addend, FLOAT_DTYPES);
    if (addend.dtype !== dtype) throw new DTypeError("addend", addend.dtype, `${dtype}, as the result`);
    checkExtents("addend", addend, shape, "that of the result");
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
   * `dx_t = (g_t − n_t mean_c(g_tc n_tc)) / r_t`, `dWeight = Σ_t dOut_t ⊙ n_t`. With an addend, `dx` is that plus it.
   * @param dOut gradient of the result, shape and dtype of `x`
   * @returns `dx` like `x`, `dWeight` like `weight`
   */
  rmsNormBackward(
    dOut: Tensor,
    x: Tensor,
    weight: Tensor,
    options: RmsNormBackwardOptions = {},
  ): { dx: Tensor<FloatDType>; dWeight: Tensor<FloatDType> } {
    const problem = this.#checkRmsNorm(x, weight, options);
    const gradient = this.#checkLike("dOut", dOut, problem.x, "x");
    const { dtype } = problem.x;
    const { addend } = options;
    if (addend !== undefined) this.#checkAddend(addend, x.shape, dtype);
    this.#checkSupport("rmsNormBackward", dtype);
    const backward = { dOut: gradient, ...problem };
    return this.produce(
      () => ({ dx: this.empty(x.shape, dtype), dWeight: this.empty(weight.shape, dtype) }),
      (outputs) =>
        addend === undefined
          ? this.runRmsNormBackward(backward, outputs)
          : this.runRmsNormBackwardAdd({ addend: addend as Tensor<FloatDType>, ...backward }, outputs),
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
      ({ dLogits }) => this.runCrossEntropyBackward({ dLoss, lse, ...problem }, dLogits),
    ).dLogits;
  }

  #checkLinearCrossEntropy(x: Tensor, weight: Tensor, targets: Tensor): LinearCrossEntropyProblem {
    checkTensor(this, "x", x, FLOAT_DTYPES, "[T, C]");
    checkTensor(this, "weight", weight, FLOAT_DTYPES, "[V, C]");
    if (weight.dtype !== x.dtype) throw new DTypeError("weight", weight.dtype, `${x.dtype}, as x`);
    const [tokens, channels] = x.shape;
    if (weight.shape[0] < 1) throw new ShapeError("weight", weight.shape, "[V, C] with V ≥ 1");
    checkExtents("weight", weight, [weight.shape[0], channels], "[V, C]");
    return { x, weight, targets: this.#checkTokens("targets", targets, tokens) };
  }

  /**
   * The loss of {@link crossEntropy} for the logits `x weightᵀ`: backends need not hold all of them at once.
   * @param x `[T, C]`, f32, f16 or bf16
   * @param weight `[V, C]`, dtype of `x`
   * @param targets `y`, int32 `[T]`; −1, or whatever is no row of the weight, is ignored: loss 0, no gradient
   * @returns loss of each token in nats, float32 `[T]`
   */
  linearCrossEntropy(x: Tensor, weight: Tensor, targets: Tensor): Tensor<"f32"> {
    const problem = this.#checkLinearCrossEntropy(x, weight, targets);
    this.#checkSupport("linearCrossEntropy", problem.x.dtype);
    return this.produce(
      () => ({ loss: this.empty([x.shape[0]], "f32") }),
      ({ loss }) => this.runLinearCrossEntropy(problem, loss),
    ).loss;
  }

  /**
   * Gradients of {@link linearCrossEntropy}, and the loss, which comes with them: with `dLogits` of {@link crossEntropyBackward}, in
   * the dtype of `x`, `dx = dLogits weight` and `dWeight = dLogitsᵀ x`.
   * @param dLoss gradient of `loss`, float32 `[T]`
   */
  linearCrossEntropyBackward(
    dLoss: Tensor,
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
  ): LinearCrossEntropyGradients {
    const problem = this.#checkLinearCrossEntropy(x, weight, targets);
    const [tokens] = x.shape;
    checkTensor(this, "dLoss", dLoss, ["f32"], "[T]");
    checkExtents("dLoss", dLoss, [tokens], "[T]");
    const { dtype } = problem.x;
    this.#checkSupport("linearCrossEntropyBackward", dtype);
    return this.produce(
      () => ({
        loss: this.empty([tokens], "f32"),
        dx: this.empty(x.shape, dtype),
        dWeight: this.empty(weight.shape, dtype),
      }),
      (outputs) => this.runLinearCrossEntropyBackward({ dLoss, ...problem }, outputs),
    );
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
   * One step of AdamW (arXiv 1711.05101) over all parameters, in place. With `t` and `η` of `schedule`, `‖g‖ = sqrt(Σ g²)` over all
   * gradients, and `ĝ = g min(1, clipNorm / ‖g‖)`:
   * `m ← β₁m + (1 − β₁)ĝ`, `v ← β₂v + (1 − β₂)ĝ²`,
   * `p ← p − η (m̂ / (sqrt(v̂) + ε) + λp)`, `m̂ = m / (1 − β₁ᵗ)`, `v̂ = v / (1 − β₂ᵗ)`.
   *
   * What differs from step to step lies in tensors: no step waits for the host, and captured ones can be replayed. `gradientNorm`
   * becomes `‖g‖`. When that is not finite, nothing else changes, in this step and in later ones on the same `gradientNorm`: the
   * parameters are those from before the gradient failed, however many steps are enqueued when it is read.
   * @param parameters at least one
   * @param schedule float32 `[2]`: `t`, the number of the step, from 1, and `η`, the learning rate
   * @param gradientNorm float32 scalar, finite before the first step: changed
   */
  adamw(
    parameters: readonly AdamWParameter[],
    schedule: Tensor,
    gradientNorm: Tensor,
    options: AdamWOptions = {},
  ): void {
    checkOptions(options);
    if (!Array.isArray(parameters) || parameters.length === 0) {
      throw new ArgumentError("parameters", parameters, "an array of at least one parameter");
    }
    const checked = parameters.map((parameter, i) =>
      this.#checkAdamWParameter(`parameters[${i}]`, parameter),
    );
    checkTensor(this, "schedule", schedule, ["f32"]);
    checkExtents("schedule", schedule, [2], "[2]");
    checkTensor(this, "gradientNorm", gradientNorm, ["f32"]);
    checkExtents("gradientNorm", gradientNorm, [], "a scalar");
    const { beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, clipNorm = Number.POSITIVE_INFINITY } = options;
    const problem = {
      parameters: checked,
      schedule,
      gradientNorm,
      beta1: checkRange("beta1", beta1, 0, 1 - Number.EPSILON),
      beta2: checkRange("beta2", beta2, 0, 1 - Number.EPSILON),
      epsilon: checkRange("epsilon", epsilon, 0, Number.MAX_VALUE),
      clipNorm: checkRange("clipNorm", clipNorm, 0, Number.POSITIVE_INFINITY),
    };
    for (const { gradient } of checked) this.#checkSupport("adamw", gradient.dtype);
    this.runAdamW(problem);
  }

  #checkAdamWParameter(argument: string, given: AdamWParameter): AdamWProblemParameter {
    if (typeof given !== "object" || given === null) {
      throw new ArgumentError(argument, given, "an object { parameter, gradient, m, v }");
    }
    const { parameter, gradient, m, v, weightDecay = 0 } = given;
    checkTensor(this, `${argument}.parameter`, parameter, ["f32"]);
    checkTensor(this, `${argument}.gradient`, gradient, FLOAT_DTYPES);
    checkTensor(this, `${argument}.m`, m, ["f32"]);
    checkTensor(this, `${argument}.v`, v, ["f32"]);
    checkExtents(`${argument}.gradient`, gradient, parameter.shape, "that of parameter");
    checkExtents(`${argument}.m`, m, parameter.shape, "that of parameter");
    checkExtents(`${argument}.v`, v, parameter.shape, "that of parameter");
    checkRange(`${argument}.weightDecay`, weightDecay, 0, Number.MAX_VALUE);
    return { parameter, gradient, m, v, weightDecay };
  }

  // ---- kernels: what a backend overrides -------------------------------------------------------------------------

  /** Computes {@link matmul} into the output. */
  protected runMatmul(problem: MatmulProblem, _out: Tensor<FloatDType>): void {
    throw new UnsupportedError("matmul", problem.a.dtype, this.name);
  }
  /** Computes {@link matmul} with an addend into the output: here in two steps. */
  protected runMatmulAdd(
    { a, b, addend, ...problem }: MatmulProblem & { addend: Tensor<FloatDType> },
    out: Tensor<FloatDType>,
  ): void {
    const { transposeA, transposeB } = problem;
    using product = this.matmul(a, b, { transposeA, transposeB });
    this.runAdd({ a: product, b: addend }, out);
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
  /** Computes {@link rmsNormBackward} with an addend into the outputs: here in two steps. */
  protected runRmsNormBackwardAdd(
    problem: RmsNormProblem & { dOut: Tensor<FloatDType>; addend: Tensor<FloatDType> },
    { dx, dWeight }: { dx: Tensor<FloatDType>; dWeight: Tensor<FloatDType> },
  ): void {
    using gradient = this.empty(dx.shape, dx.dtype);
    this.runRmsNormBackward(problem, { dx: gradient, dWeight });
    this.runAdd({ a: gradient, b: problem.addend }, dx);
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
  /** Computes {@link linearCrossEntropy} into the output: here with all logits at once. */
  protected runLinearCrossEntropy(
    { x, weight, targets }: LinearCrossEntropyProblem,
    loss: Tensor<"f32">,
  ): void {
    using logits = this.matmul(x, weight, { transposeB: true });
    using lse = this.empty(loss.shape, "f32");
    this.runCrossEntropy({ logits, targets }, { loss, lse });
  }
  /** Computes {@link linearCrossEntropyBackward} into the outputs: here with all logits at once. */
  protected runLinearCrossEntropyBackward(
    { x, weight, targets, dLoss }: LinearCrossEntropyProblem & { dLoss: Tensor<"f32"> },
    { loss, dx, dWeight }: LinearCrossEntropyGradients,
  ): void {
    const [tokens, channels] = x.shape;
    const [columns] = weight.shape;
    using logits = this.matmul(x, weight, { transposeB: true });
    using lse = this.empty(loss.shape, "f32");
    this.runCrossEntropy({ logits, targets }, { loss, lse });
    using dLogits = this.empty(logits.shape, logits.dtype);
    this.runCrossEntropyBackward({ logits, targets, dLoss, lse }, dLogits);
    const toX = { a: dLogits, b: weight, transposeA: false, transposeB: false };
    this.runMatmul({ ...toX, rows: tokens, columns: channels, inner: columns }, dx);
    const toWeight = { a: dLogits, b: x, transposeA: true, transposeB: false };
    this.runMatmul({ ...toWeight, rows: columns, columns: channels, inner: tokens }, dWeight);
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
    throw new UnsupportedError("adamw", problem.parameters[0].gradient.dtype, this.name);
  }
}
