import { Random } from "@moba-js/snr";
import {
  type Backend,
  type CuSeqlens,
  type CuSeqlensInput,
  checkCuSeqlens,
  type FloatDType,
  type Routing,
  ShapeError,
  type Tensor,
} from "@moba-js/tensor";
import {
  type AttentionConfig,
  checkConfig,
  layerAttention,
  type ModelConfig,
  parameterShapes,
} from "./config.js";
import { type Tape, Variable } from "./tape.js";

/** Queries, keys and values of one layer, before the key convolution. */
export interface QueriesKeysValues {
  /** `[T, H, d]` */
  readonly q: Variable;
  /** `[T, Hkv, d]` */
  readonly k: Variable;
  /** `[T, Hkv, d]` */
  readonly v: Variable;
}

/** Where the queries of a forward pass find their keys: among themselves ({@link PackedKeys}), or in a cache. */
export interface KeySource {
  /**
   * Attention of one layer.
   * @param conv weights of the layer's key convolution, if it has one
   * @returns `[T, H, d]`
   */
  attend(
    tape: Tape,
    layer: number,
    attention: AttentionConfig,
    inputs: QueriesKeysValues,
    conv: Variable | undefined,
  ): Variable;
}

/** What a MoBA layer chose, for a look at it: valid during the call only, so read (`values()`) at once. */
export interface RoutingObservation {
  readonly layer: number;
  /** `[T, H, d]` */
  readonly q: Tensor;
  /** `[T, Hkv, d]`, after the key convolution: what is routed and attended. */
  readonly k: Tensor;
  readonly routing: Routing;
}

/** Keys that come with their queries: packed sequences, as in training. */
export class PackedKeys implements KeySource {
  /**
   * @param cuSeqlens where each sequence begins
   * @param observe is shown the routing of each MoBA layer
   */
  constructor(
    readonly cuSeqlens: CuSeqlens,
    readonly observe?: (observation: RoutingObservation) => void,
  ) {}

  /** Attention of one layer, each sequence by itself. */
  attend(
    tape: Tape,
    layer: number,
    attention: AttentionConfig,
    { q, k, v }: QueriesKeysValues,
    conv: Variable | undefined,
  ): Variable {
    const { cuSeqlens, observe } = this;
    switch (attention.kind) {
      case "window":
        return tape.windowAttention(q, k, v, { cuSeqlens, window: attention.window });
      case "dense":
        return tape.attention(q, k, v, { cuSeqlens });
      case "moba": {
        const { blockSize, topK } = attention;
        const keys = conv ? tape.keyConv(k, conv, { cuSeqlens }) : k;
        return tape.moba(q, keys, v, { cuSeqlens, blockSize, topK }, (routing) =>
          observe?.({ layer, q: q.value, k: keys.value, routing }),
        );
      }
    }
  }
}

/** Tokens for a forward pass. */
export interface TokenBatch {
  /** int32 `[T]` */
  readonly tokens: Tensor;
  /** Position of each token in its sequence, int32 `[T]`. */
  readonly positions: Tensor;
  readonly keys: KeySource;
}

/** Positions of the tokens of packed sequences, counted from 0 in each. */
export function packedPositions(cuSeqlens: CuSeqlens): Int32Array {
  const positions = new Int32Array(cuSeqlens[cuSeqlens.length - 1]);
  for (let s = 0; s + 1 < cuSeqlens.length; s++) {
    for (let t = cuSeqlens[s]; t < cuSeqlens[s + 1]; t++) positions[t] = t - cuSeqlens[s];
  }
  return positions;
}

/** The hybrid transformer of the paper: see {@link ModelConfig}. Owns its parameters. */
export class Transformer {
  readonly config: ModelConfig;
  readonly #parameters: ReadonlyMap<string, Variable>;

  /**
   * @param parameters one tensor of the right shape for each name of `parameterShapes(config)`; the model owns them from now on
   * @param compute dtype of activations, and of the parameters as they are used. Default: as the embedding.
   * @throws ShapeError naming the parameter that is missing or has another shape; ArgumentError for a bad config.
   */
  constructor(
    readonly backend: Backend,
    config: ModelConfig,
    parameters: ReadonlyMap<string, Tensor>,
    readonly compute: FloatDType = (parameters.get("embedding.weight")?.dtype ?? "f32") as FloatDType,
  ) {
    this.config = checkConfig(config);
    const variables = new Map<string, Variable>();
    for (const [name, shape] of parameterShapes(this.config)) {
      const tensor = parameters.get(name);
      if (!tensor || tensor.shape.join() !== shape.join()) {
        throw new ShapeError(name, tensor?.shape ?? [], `[${shape.join(", ")}]`);
      }
      variables.set(name, new Variable(tensor));
    }
    this.#parameters = variables;
  }

  /**
   * A model with random parameters, float32: normal with deviation 0.02, or `0.02 / sqrt(2·layers)` for the matrices that write to
   * the residual stream (as in GPT-2); norms at 1; key convolutions at 0, so that they start as the identity.
   */
  static initialize(
    backend: Backend,
    config: ModelConfig,
    options: { seed: number; compute?: FloatDType },
  ): Transformer {
    const random = new Random(options.seed);
    const { layers } = checkConfig(config);
    const deviationOf = (name: string): number => {
      if (/norm|conv/.test(name)) return 0;
      return /\.(out|down)\./.test(name) ? 0.02 / Math.sqrt(2 * layers) : 0.02;
    };
    const parameters = new Map<string, Tensor>();
    for (const [name, shape] of parameterShapes(config)) {
      const deviation = deviationOf(name);
      const mean = name.includes("norm") ? 1 : 0;
      const values = new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(mean);
      if (deviation > 0) for (let i = 0; i < values.length; i++) values[i] = deviation * random.normal();
      parameters.set(name, backend.tensor(values, shape));
    }
    return new Transformer(backend, config, parameters, options.compute);
  }

  /** The parameters by name, in the order of `parameterShapes`. */
  get parameters(): ReadonlyMap<string, Variable> {
    return this.#parameters;
  }

  /** Packed sequences as a batch, keys among themselves; dispose its tensors. */
  packedBatch(
    tokens: ArrayLike<number>,
    cuSeqlens?: CuSeqlensInput,
    observe?: (observation: RoutingObservation) => void,
  ): TokenBatch {
    const checked = checkCuSeqlens("cuSeqlens", cuSeqlens, tokens.length);
    return {
      tokens: this.backend.tensor(tokens, [tokens.length], "i32"),
      positions: this.backend.tensor(packedPositions(checked), [tokens.length], "i32"),
      keys: new PackedKeys(checked, observe),
    };
  }

  /**
   * The residual stream after the last layer, normalized: `[T, C]`.
   * Each half of a layer adds to the stream: `x ← x + Attention(norm(x))`, `x ← x + W_down (SiLU(W_gate n) ⊙ W_up n)`, `n = norm(x)`.
   */
  hidden(tape: Tape, batch: TokenBatch): Variable {
    let x = tape.embedding(this.#weight(tape, "embedding"), batch.tokens);
    for (let layer = 0; layer < this.config.layers; layer++) {
      x = tape.segment(x, (part, input) =>
        this.#mlp(part, layer, this.#attention(part, layer, input, batch)),
      );
    }
    return tape.segment(x, (part, input) => this.#norm(part, "norm", input));
  }

  /** Logits of the next token, `[T, V]`, from `hidden` (or some of its rows): the embedding is the output matrix too. */
  logits(tape: Tape, hidden: Variable): Variable {
    return tape.linear(hidden, this.#weight(tape, "embedding"));
  }

  /**
   * Cross-entropy of each token with its target, `[T]`, nats.
   * @param targets int32 `[T]`, −1 where there is none
   * @param dLoss the gradient that `tape.backward` will be given for it, if that is known; see {@link Tape.linearCrossEntropy}
   */
  loss(tape: Tape, batch: TokenBatch, targets: Tensor, dLoss?: Tensor): Variable {
    const embedding = this.#weight(tape, "embedding");
    return tape.linearCrossEntropy(this.hidden(tape, batch), embedding, targets, dLoss);
  }

  /** Disposes the parameters and their gradients. */
  dispose(): void {
    for (const { value, gradient } of this.#parameters.values()) {
      value.dispose();
      gradient?.dispose();
    }
  }

  /** A parameter in the dtype of the computation. */
  #weight(tape: Tape, name: string): Variable {
    return tape.cast(this.#parameters.get(`${name}.weight`) as Variable, this.compute);
  }

  #norm(tape: Tape, name: string, x: Variable): Variable {
    return tape.rmsNorm(x, this.#weight(tape, name), { epsilon: this.config.normEpsilon });
  }

  #attention(tape: Tape, layer: number, x: Variable, { positions, keys }: TokenBatch): Variable {
    const { heads, kvHeads, headDim } = this.config;
    const attention = layerAttention(this.config, layer);
    const name = `layers.${layer}.attention`;
    const normalized = this.#norm(tape, `${name}.norm`, x);
    // What no backward pass reads is disposed at once: of a context of 64K tokens it would be gigabytes.
    const project = (part: string, count: number): Variable => {
      const flat = tape.linear(normalized, this.#weight(tape, `${name}.${part}`));
      const vectors = tape.reshape(flat, [flat.value.shape[0], count, headDim]);
      flat.value.dispose();
      return vectors;
    };
    const turn = (vectors: Variable): Variable => {
      if (attention.kind !== "window") return vectors;
      const turned = tape.rope(vectors, positions, { base: attention.ropeBase });
      vectors.value.dispose();
      return turned;
    };
    const inputs = {
      q: turn(project("q", heads)),
      k: turn(project("k", kvHeads)),
      v: project("v", kvHeads),
    };
    const hasConv = attention.kind === "moba" && attention.convWidth > 0;
    const conv = hasConv ? this.#weight(tape, `${name}.conv`) : undefined;
    const attended = keys.attend(tape, layer, attention, inputs, conv);
    const flat = tape.reshape(attended, [x.value.shape[0], heads * headDim]);
    return tape.linear(flat, this.#weight(tape, `${name}.out`), x);
  }

  #mlp(tape: Tape, layer: number, x: Variable): Variable {
    const name = `layers.${layer}.mlp`;
    const normalized = this.#norm(tape, `${name}.norm`, x);
    const gate = tape.linear(normalized, this.#weight(tape, `${name}.gate`));
    const up = tape.linear(normalized, this.#weight(tape, `${name}.up`));
    return tape.linear(tape.swiglu(gate, up), this.#weight(tape, `${name}.down`), x);
  }
}
