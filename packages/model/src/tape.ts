import {
  ArgumentError,
  type AttentionOptions,
  type AttentionResult,
  type Backend,
  type CuSeqlensInput,
  type FloatDType,
  type MobaOptions,
  type RmsNormOptions,
  type RopeOptions,
  type Routing,
  type Tensor,
  type WindowAttentionOptions,
} from "@moba-js/tensor";

/** A tensor that gradients flow to: a parameter, an input of a {@link Tape}, or a result of one of its operations. */
export class Variable {
  /**
   * The sum of what backward passes have brought so far. Parameters keep it until it is taken; results do not. Of a parameter that is used
   * in another dtype it may have that one.
   */
  gradient: Tensor | undefined;

  constructor(
    /** The tensor. Of a recorded result the tape disposes it. */
    readonly value: Tensor,
  ) {}

  /** The gradient, which is the caller's from now on, if there is one. */
  takeGradient(): Tensor | undefined {
    const { gradient } = this;
    this.gradient = undefined;
    return gradient;
  }
}

/**
 * One gradient for each input; they belong to the caller. The one that arrived may be among them, once.
 * @param before of operations that can add it to the first input's gradient on the way, what that input has of others
 */
type Backward = (gradient: Tensor, before?: Tensor) => readonly Tensor[];

interface Node {
  readonly inputs: readonly Variable[];
  readonly output: Variable;
  /** What the backward pass needs besides inputs and output. */
  readonly saved: readonly Tensor[];
  readonly backward: Backward;
  /** Whether `backward` adds `before`. */
  readonly adds: boolean;
}

/** How a {@link Tape} runs. */
export interface TapeOptions {
  /** Remember operations for a backward pass. Default true. */
  record?: boolean;
  /** Keep only the inputs of each {@link Tape.segment}, and compute the rest again in the backward pass. Default false. */
  recompute?: boolean;
}

/** The option of what is added, if there is anything. */
const plus = (addend: Tensor | undefined) => (addend ? { addend } : {});

/**
 * Reverse-mode differentiation: runs operations of a backend, remembers them, and goes back through them once. Going back
 * disposes each operation's result and what it saved as soon as its gradients are made, so memory falls all the way.
 */
export class Tape {
  readonly #nodes: Node[] = [];
  readonly #record: boolean;
  readonly #recompute: boolean;

  constructor(
    readonly backend: Backend,
    options: TapeOptions = {},
  ) {
    this.#record = options.record !== false;
    this.#recompute = options.recompute === true;
  }

  /**
   * Goes back from a result: adds `d(Σ gradient ⊙ output)/dx` to the `gradient` of every parameter and input `x`, and leaves
   * the tape empty, with every result on it disposed.
   * @param gradient shape and dtype of the output's value; stays the caller's
   */
  backward(output: Variable, gradient: Tensor): void {
    if (!this.#record) throw new ArgumentError("tape", "a tape that does not record", "one that records");
    accumulate(this.backend, output, gradient.reshape(gradient.shape)); // a tensor of its own over the same memory
    for (let node = this.#nodes.pop(); node; node = this.#nodes.pop()) {
      const arrived = node.output.takeGradient();
      if (arrived) {
        const before = node.adds ? node.inputs[0].takeGradient() : undefined;
        const gradients = node.backward(arrived, before);
        node.inputs.forEach((input, i) => {
          accumulate(this.backend, input, gradients[i]);
        });
        before?.dispose();
        if (!gradients.includes(arrived)) arrived.dispose();
      }
      node.output.value.dispose();
      for (const tensor of node.saved) tensor.dispose();
    }
  }

  #result(
    inputs: readonly Variable[],
    value: Tensor,
    saved: readonly Tensor[],
    backward: Backward,
    adds = false,
  ): Variable {
    const output = new Variable(value);
    if (this.#record) this.#nodes.push({ inputs, output, saved, backward, adds });
    else for (const tensor of saved) tensor.dispose();
    return output;
  }

  /**
   * A part of a network as one operation, such as a layer. Without recording, what it makes on the way is disposed, and
   * so is its input; with recomputation, only the former, and the backward pass runs `body` again
   * (gradient checkpointing, arXiv 1604.06174).
   */
  segment(x: Variable, body: (tape: Tape, x: Variable) => Variable): Variable {
    if (this.#record && !this.#recompute) return body(this, x);
    const silent = new Tape(this.backend, { record: false });
    const value = this.backend.scope(() => body(silent, x).value);
    if (!this.#record) x.value.dispose();
    return this.#result([x], value, [], (gradient) => {
      const tape = new Tape(this.backend);
      const input = new Variable(x.value);
      tape.backward(body(tape, input), gradient);
      return [input.gradient as Tensor];
    });
  }

  /**
   * A parameter in another dtype; itself if it has it already. Its gradient stays in that dtype as long as it is the only one; several are
   * summed in the parameter's.
   */
  cast(parameter: Variable, dtype: FloatDType): Variable {
    if (parameter.value.dtype === dtype) return parameter;
    return this.#result([parameter], this.backend.cast(parameter.value, dtype), [], (d) => [d]);
  }

  /** `x` in another shape over the same memory. */
  reshape(x: Variable, shape: readonly number[]): Variable {
    return this.#result([x], x.value.reshape(shape), [], (d) => [d.reshape(x.value.shape)]);
  }

  /**
   * `x Wᵀ`, or `addend + x Wᵀ`; `x` `[T, inputs]`, `W` `[outputs, inputs]`: `dx = d W`, `dW = dᵀ x`, and `d` for the addend.
   */
  linear(x: Variable, weight: Variable, addend?: Variable): Variable {
    const { backend } = this;
    const value = backend.matmul(x.value, weight.value, { transposeB: true, ...plus(addend?.value) });
    const backward = (d: Tensor, before?: Tensor) => [
      backend.matmul(d, weight.value, plus(before)),
      backend.matmul(d, x.value, { transposeA: true }),
      ...(addend ? [d] : []),
    ];
    return this.#result([x, weight, ...(addend ? [addend] : [])], value, [], backward, true);
  }

  /** Rows of a table, `Backend.embedding`. */
  embedding(table: Variable, indices: Tensor): Variable {
    const { backend } = this;
    return this.#result([table], backend.embedding(table.value, indices), [], (d) => [
      backend.embeddingBackward(d, indices, table.value.shape[0]),
    ]);
  }

  /** `Backend.rmsNorm`. */
  rmsNorm(x: Variable, weight: Variable, options: RmsNormOptions): Variable {
    const { backend } = this;
    const backward = (d: Tensor, before?: Tensor) => {
      const gradients = backend.rmsNormBackward(d, x.value, weight.value, { ...plus(before), ...options });
      return [gradients.dx, gradients.dWeight];
    };
    return this.#result([x, weight], backend.rmsNorm(x.value, weight.value, options), [], backward, true);
  }

  /** `Backend.swiglu`. */
  swiglu(gate: Variable, up: Variable): Variable {
    const { backend } = this;
    return this.#result([gate, up], backend.swiglu(gate.value, up.value), [], (d) => {
      const { dGate, dUp } = backend.swigluBackward(d, gate.value, up.value);
      return [dGate, dUp];
    });
  }

  /** `Backend.rope`: its gradient is the inverse rotation. */
  rope(x: Variable, positions: Tensor, options: RopeOptions): Variable {
    const { backend } = this;
    return this.#result([x], backend.rope(x.value, positions, options), [], (d) => [
      backend.rope(d, positions, { ...options, inverse: true }),
    ]);
  }

  /** `Backend.keyConv`, without history. */
  keyConv(k: Variable, weights: Variable, options: { cuSeqlens: CuSeqlensInput }): Variable {
    const { backend } = this;
    return this.#result([k, weights], backend.keyConv(k.value, weights.value, options), [], (d) => {
      const { dk, dWeights } = backend.keyConvBackward(d, k.value, weights.value, options);
      return [dk, dWeights];
    });
  }

  /** `Backend.attention`. */
  attention(q: Variable, k: Variable, v: Variable, options: AttentionOptions): Variable {
    const { backend } = this;
    const result = backend.attention(q.value, k.value, v.value, options);
    return this.#attention([q, k, v], result, [], (d, { out, lse }) =>
      backend.attentionBackward(d, q.value, k.value, v.value, out, lse, options),
    );
  }

  /** `Backend.windowAttention`. */
  windowAttention(q: Variable, k: Variable, v: Variable, options: WindowAttentionOptions): Variable {
    const { backend } = this;
    const result = backend.windowAttention(q.value, k.value, v.value, options);
    return this.#attention([q, k, v], result, [], (d, { out, lse }) =>
      backend.windowAttentionBackward(d, q.value, k.value, v.value, out, lse, options),
    );
  }

  /**
   * `Backend.route`, then `Backend.attend`: no gradient flows through the choice of blocks.
   * @param observe is shown the routing, which the tape keeps and disposes
   */
  moba(
    q: Variable,
    k: Variable,
    v: Variable,
    options: MobaOptions,
    observe?: (routing: Routing) => void,
  ): Variable {
    const { backend } = this;
    const { routing, ...result } = backend.moba(q.value, k.value, v.value, options);
    observe?.(routing);
    return this.#attention([q, k, v], result, [routing.indices], (d, { out, lse }) =>
      backend.attendBackward(d, q.value, k.value, v.value, out, lse, routing),
    );
  }

  #attention(
    inputs: readonly Variable[],
    result: AttentionResult,
    saved: readonly Tensor[],
    backward: (d: Tensor, result: AttentionResult) => { dq: Tensor; dk: Tensor; dv: Tensor },
  ): Variable {
    return this.#result(inputs, result.out, [result.lse, ...saved], (d) => {
      const { dq, dk, dv } = backward(d, result);
      return [dq, dk, dv];
    });
  }

  /**
   * `Backend.linearCrossEntropy`: loss of each token for the logits `x Wᵀ`, `[T]`.
   * @param dLoss the gradient that {@link backward} will be given for the result, if it is known: the logits are computed once then
   */
  linearCrossEntropy(x: Variable, weight: Variable, targets: Tensor, dLoss?: Tensor): Variable {
    const { backend } = this;
    const gradientsOf = (d: Tensor) => backend.linearCrossEntropyBackward(d, x.value, weight.value, targets);
    if (this.#record && dLoss) {
      const { loss, dx, dWeight } = gradientsOf(dLoss);
      return this.#result([x, weight], loss, [], () => [dx, dWeight]);
    }
    const loss = backend.linearCrossEntropy(x.value, weight.value, targets);
    return this.#result([x, weight], loss, [], (d) => {
      const gradients = gradientsOf(d);
      gradients.loss.dispose();
      return [gradients.dx, gradients.dWeight];
    });
  }
}

/** Adds a gradient, which it takes over, to a variable's, in the variable's dtype. */
function accumulate(backend: Backend, variable: Variable, gradient: Tensor): void {
  const before = variable.takeGradient();
  if (!before) {
    variable.gradient = gradient;
    return;
  }
  const dtype = variable.value.dtype as FloatDType;
  const widened = (tensor: Tensor) => (tensor.dtype === dtype ? tensor : backend.cast(tensor, dtype));
  variable.gradient = backend.scope(() => backend.add(widened(before), widened(gradient)));
  before.dispose();
  gradient.dispose();
}
