import type { Backend, Tensor } from "@moba-js/tensor";
import { type GlobalAttention, type ModelConfig, parameterShapes, Transformer } from "../src/index.js";
import type { TestRandom } from "./random.js";

/** A model of a few hundred parameters, with grouped heads and windows and blocks of a few tokens. */
export const miniature = (attention: GlobalAttention): ModelConfig => ({
  vocabulary: 11,
  hidden: 8,
  layers: 4,
  heads: 4,
  kvHeads: 2,
  headDim: 4,
  mlp: 12,
  window: 5,
  ropeBase: 100,
  attention,
  normEpsilon: 1e-3,
});

/** Every kind of attention over the whole past, by name. */
export const KINDS: Readonly<Record<string, GlobalAttention>> = {
  dense: { kind: "dense" },
  moba: { kind: "moba", blockSize: 4, topK: 2, convWidth: 0 },
  "moba, W = 3": { kind: "moba", blockSize: 4, topK: 3, convWidth: 3 },
  "moba, W = 5": { kind: "moba", blockSize: 6, topK: 2, convWidth: 5 },
};

/** A model whose every parameter matters: none is zero, and attention is far from uniform. */
export function randomModel(backend: Backend, config: ModelConfig, random: TestRandom): Transformer {
  const parameters = new Map<string, Tensor>();
  for (const [name, shape] of parameterShapes(config)) {
    const fanIn = name.includes("conv") ? 4 : (shape[1] ?? 1);
    const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () =>
      name.includes("norm") ? 1 + 0.2 * random.normal() : (1.5 * random.normal()) / Math.sqrt(fanIn),
    );
    parameters.set(name, backend.tensor(values, shape));
  }
  return new Transformer(backend, config, parameters);
}

/** Random lengths of packed sequences, some empty. */
export const randomLengths = (random: TestRandom, longest: number): number[] =>
  Array.from({ length: random.int(1, 4) }, () => (random.uniform() < 0.2 ? 0 : random.int(1, longest)));

/**
 * A model that says a chain of distinct tokens: after each its likeliest next one is the one that follows it. Its layers add nothing
 * to the residual stream, and with `E_i = 3^i (e_i + e_{i+1})` the product `E_i·E_j` is highest for `j = i + 1`.
 */
export function chainModel(backend: Backend, vocabulary: number, chain: readonly number[]): Transformer {
  const config = {
    ...miniature({ kind: "moba", blockSize: 4, topK: 2, convWidth: 0 }),
    vocabulary,
    hidden: chain.length + 1,
  };
  const parameters = new Map<string, Tensor>();
  for (const [name, shape] of parameterShapes(config)) {
    const values = new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(name.includes("norm") ? 1 : 0);
    if (name === "embedding.weight") {
      chain.forEach((token, i) => {
        values.fill(3 ** i, token * config.hidden + i, token * config.hidden + i + 2);
      });
    }
    parameters.set(name, backend.tensor(values, shape));
  }
  return new Transformer(backend, config, parameters);
}
