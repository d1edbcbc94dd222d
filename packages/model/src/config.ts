import { ArgumentError, checkPositiveInteger } from "@moba-js/tensor";

/** Attention of a layer that looks at the whole past: MoBA, or dense as its baseline. Neither has positional encoding. */
export type GlobalAttention =
  | { readonly kind: "dense" }
  | {
      readonly kind: "moba";
      /** `B`, tokens a block. */
      readonly blockSize: number;
      /** `k`, blocks a query attends, its own included. */
      readonly topK: number;
      /** `W`, width of the key convolution; 0 for none. */
      readonly convWidth: number;
    };

/** Attention of a layer that looks at a window: the last `window` tokens, with rotary position embedding. */
export interface WindowAttention {
  readonly kind: "window";
  /** `w`, in tokens. */
  readonly window: number;
  /** Base of the rotary frequencies. */
  readonly ropeBase: number;
}

/** Attention of one layer. */
export type AttentionConfig = GlobalAttention | WindowAttention;

/**
 * The hybrid transformer of the paper (arXiv 2511.11571, section 5.1): layers alternate sliding-window attention with
 * rotary embedding, and attention over the whole past without positional encoding; SwiGLU, RMSNorm before each half
 * of a layer, tied embeddings, no biases.
 */
export interface ModelConfig {
  /** `V`, tokens of the vocabulary. */
  readonly vocabulary: number;
  /** `C`, channels of the residual stream. */
  readonly hidden: number;
  /** Layers; the first, third, … look at a window, the others at the whole past. */
  readonly layers: number;
  /** `H`, query heads. */
  readonly heads: number;
  /** `Hkv`, key/value heads, a divisor of `H`. */
  readonly kvHeads: number;
  /** `d`, even. */
  readonly headDim: number;
  /** Channels inside the SwiGLU. */
  readonly mlp: number;
  /** `w` of the window layers. */
  readonly window: number;
  /** Base of the rotary frequencies of the window layers. */
  readonly ropeBase: number;
  /** Attention of the other layers. */
  readonly attention: GlobalAttention;
  /** `ε` of the normalizations. */
  readonly normEpsilon: number;
}

/** Names of the {@link PRESETS}. */
export type PresetName = "tiny" | "small" | "340m" | "1b";

const shared = { ropeBase: 10000, normEpsilon: 1e-6 };

/**
 * Models by name. In each the MLP is 2.75 times as wide as the residual stream, as in the paper's 340M model.
 * - `tiny`: bytes (256 and an end mark), for tests and a CPU.
 * - `small`: 20M parameters.
 * - `340m`: the paper's.
 * - `1b`: hidden 2048 and 32 heads of 64 as in the paper; 18 layers of MLP 5632, which keeps the 340M model's proportions, makes
 *   nine window/MoBA pairs, and comes to 0.99 × 10⁹ parameters.
 */
export const PRESETS: Readonly<Record<PresetName, ModelConfig>> = {
  tiny: {
    ...shared,
    vocabulary: 257,
    hidden: 64,
    layers: 4,
    heads: 2,
    kvHeads: 1,
    headDim: 32,
    mlp: 176,
    window: 64,
    attention: { kind: "moba", blockSize: 32, topK: 4, convWidth: 3 },
  },
  small: {
    ...shared,
    vocabulary: 32000,
    hidden: 320,
    layers: 8,
    heads: 5,
    kvHeads: 5,
    headDim: 64,
    mlp: 880,
    window: 256,
    attention: { kind: "moba", blockSize: 128, topK: 8, convWidth: 3 },
  },
  "340m": {
    ...shared,
    vocabulary: 32000,
    hidden: 1024,
    layers: 24,
    heads: 16,
    kvHeads: 16,
    headDim: 64,
    mlp: 2816,
    window: 256,
    attention: { kind: "moba", blockSize: 128, topK: 8, convWidth: 3 },
  },
  "1b": {
    ...shared,
    vocabulary: 32000,
    hidden: 2048,
    layers: 18,
    heads: 32,
    kvHeads: 32,
    headDim: 64,
    mlp: 5632,
    window: 256,
    attention: { kind: "moba", blockSize: 128, topK: 8, convWidth: 3 },
  },
};

/** Attention of layer `layer`, counted from 0. */
export const layerAttention = (config: ModelConfig, layer: number): AttentionConfig =>
  layer % 2 === 0 ? { kind: "window", window: config.window, ropeBase: config.ropeBase } : config.attention;

/** Shape of every parameter of a model, by name, in a fixed order. Matrices are `[outputs, inputs]`. */
export function parameterShapes(config: ModelConfig): Map<string, readonly number[]> {
  const { vocabulary, hidden, layers, heads, kvHeads, headDim, mlp } = config;
  const shapes = new Map<string, readonly number[]>([["embedding.weight", [vocabulary, hidden]]]);
  for (let layer = 0; layer < layers; layer++) {
    const attention = layerAttention(config, layer);
    const add = (name: string, shape: readonly number[]) =>
      shapes.set(`layers.${layer}.${name}.weight`, shape);
    add("attention.norm", [hidden]);
    add("attention.q", [heads * headDim, hidden]);
    add("attention.k", [kvHeads * headDim, hidden]);
    add("attention.v", [kvHeads * headDim, hidden]);
    add("attention.out", [hidden, heads * headDim]);
    if (attention.kind === "moba" && attention.convWidth > 0) {
      add("attention.conv", [attention.convWidth, kvHeads, headDim]);
    }
    add("mlp.norm", [hidden]);
    add("mlp.gate", [mlp, hidden]);
    add("mlp.up", [mlp, hidden]);
    add("mlp.down", [hidden, mlp]);
  }
  return shapes.set("norm.weight", [hidden]);
}

/** The number of parameters of a model. */
export const parameterCount = (config: ModelConfig): number =>
  [...parameterShapes(config).values()].reduce((sum, shape) => sum + shape.reduce((a, b) => a * b, 1), 0);

/**
 * Checks a model's sizes, and returns it without whatever else the object holds.
 * @throws ArgumentError naming the field that is missing or out of range.
 */
export function checkConfig(config: ModelConfig): ModelConfig {
  if (typeof config !== "object" || config === null) throw new ArgumentError("config", config, "an object");
  const { vocabulary, hidden, layers, heads, kvHeads, headDim, mlp, window, ropeBase, normEpsilon } = config;
  const sizes = { vocabulary, hidden, layers, heads, kvHeads, headDim, mlp, window };
  for (const [name, value] of Object.entries(sizes)) checkPositiveInteger(`config.${name}`, value);
  if (heads % kvHeads !== 0)
    throw new ArgumentError("config.kvHeads", kvHeads, `a divisor of heads = ${heads}`);
  if (headDim % 2 !== 0) throw new ArgumentError("config.headDim", headDim, "an even number");
  if (!(Number.isFinite(ropeBase) && ropeBase >= 1)) {
    throw new ArgumentError("config.ropeBase", ropeBase, "a number ≥ 1");
  }
  if (!(Number.isFinite(normEpsilon) && normEpsilon >= 0)) {
    throw new ArgumentError("config.normEpsilon", normEpsilon, "a number ≥ 0");
  }
  return { ...sizes, ropeBase, normEpsilon, attention: checkGlobalAttention(config.attention) };
}

function checkGlobalAttention(attention: GlobalAttention): GlobalAttention {
  if (attention?.kind === "dense") return { kind: "dense" };
  if (attention?.kind !== "moba") {
    throw new ArgumentError("config.attention", attention, 'an object of kind "moba" or "dense"');
  }
  const { blockSize, topK, convWidth } = attention;
  checkPositiveInteger("config.attention.blockSize", blockSize);
  checkPositiveInteger("config.attention.topK", topK);
  if (convWidth !== 0) checkPositiveInteger("config.attention.convWidth", convWidth);
  return { kind: "moba", blockSize, topK, convWidth };
}
