import type { CuSeqlens, FloatDType, KeyConvHistoryProblem, KeyConvProblem, Tensor } from "@moba-js/tensor";
import { type Context, inFloat32 } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import { overElements } from "./elementwise.js";
import mainSource from "./elementwise.wgsl";
import { wordsOf } from "./embedding.js";
import gatherSource from "./gather.wgsl";
import convSource from "./key-conv.wgsl";
import keysSource from "./key-conv-backward-keys.wgsl";
import weightsSource from "./key-conv-backward-weights.wgsl";
import gradientSource from "./key-conv-gradient.wgsl";
import historySource from "./key-conv-history.wgsl";
import sumSource from "./key-conv-sum.wgsl";
import { sumParts } from "./reductions.js";
import sequenceSource from "./sequence-of.wgsl";
import siluSource from "./silu.wgsl";

const SHAPE = {
  firstQuad: "u32",
  endQuad: "u32",
  size: "u32",
  channels: "u32",
  width: "u32",
  sequences: "u32",
} as const;

const CONV = kernel({
  name: "key-conv",
  source: siluSource + sequenceSource + sumSource + convSource + mainSource,
  bindings: {
    k: read("elements"),
    weights: read("elements"),
    history: read("elements"),
    starts: read("u32"),
    out: write("quads"),
  },
  params: SHAPE,
});

const GRADIENT = kernel({
  name: "key-conv-gradient",
  source: siluSource + sequenceSource + sumSource + gradientSource + mainSource,
  bindings: {
    k: read("elements"),
    weights: read("elements"),
    history: read("elements"),
    starts: read("u32"),
    dOut: read("quads"),
    g: write("quads"),
  },
  params: SHAPE,
});

const KEYS = kernel({
  name: "key-conv-backward-keys",
  source: sequenceSource + keysSource + mainSource,
  bindings: {
    dOut: read("quads"),
    weights: read("elements"),
    g: read("f32"),
    starts: read("u32"),
    dk: write("quads"),
  },
  params: SHAPE,
});

const WEIGHTS = kernel({
  name: "key-conv-backward-weights",
  source: sequenceSource + weightsSource,
  bindings: { k: read("elements"), g: read("f32"), starts: read("u32"), parts: write("f32") },
  params: {
    channels: "u32",
    width: "u32",
    sequences: "u32",
    tokens: "u32",
    parts: "u32",
    partTokens: "u32",
  },
});

const HISTORY = kernel({
  name: "key-conv-history",
  source: historySource + gatherSource,
  bindings: { k: read("u32"), history: read("u32"), starts: read("u32"), out: write("u32") },
  params: { words: "u32", channels: "u32", width: "u32", sequences: "u32" },
});

/** Tokens that one thread adds up. */
const PART_TOKENS = 64;

const tableOf = (cuSeqlens: CuSeqlens): Uint32Array => Uint32Array.from(cuSeqlens);

function shapeOf({ k, width, kvHeads, headDim, cuSeqlens }: KeyConvProblem) {
  return { size: k.size, channels: kvHeads * headDim, width, sequences: cuSeqlens.length - 1 };
}

/** `k'_t = k_t + SiLU(Σ_l w_l ⊙ k_{t−l})`. */
export function keyConv(
  context: Context,
  problem: KeyConvProblem & { history?: Tensor<FloatDType> },
  out: Tensor<FloatDType>,
): void {
  const { k, weights, history, cuSeqlens } = problem;
  const buffers = { k, weights, history: history ?? k, starts: tableOf(cuSeqlens), out };
  overElements(context, CONV, k.size, buffers, shapeOf(problem), { HISTORY: history !== undefined });
}

/** Each sequence's last `W − 1` keys. */
export function keyConvHistory(
  { commands }: Context,
  { k, width, cuSeqlens, history }: KeyConvHistoryProblem,
  next: Tensor<FloatDType>,
): void {
  const PACKED = k.dtype !== "f32";
  const words = wordsOf(next.size, PACKED);
  commands.launch(HISTORY, {
    buffers: { k, history: history ?? k, starts: tableOf(cuSeqlens), out: next },
    params: { words, channels: k.shape[1] * k.shape[2], width, sequences: cuSeqlens.length - 1 },
    constants: { PACKED, HISTORY: history !== undefined },
    groups: Math.ceil(words / 64),
  });
}

/** The gradients of {@link keyConv}. */
export function keyConvBackward(
  context: Context,
  problem: KeyConvProblem & { dOut: Tensor<FloatDType> },
  { dk, dWeights }: { dk: Tensor<FloatDType>; dWeights: Tensor<FloatDType> },
): void {
  const { commands } = context;
  const { k, weights, dOut, tokens } = problem;
  const shape = shapeOf(problem);
  const { channels, width, sequences } = shape;
  const starts = tableOf(problem.cuSeqlens);
  const g = commands.workspace(Math.max(1, k.size));
  const gradient = { k, weights, history: k, starts, dOut, g };
  overElements(context, GRADIENT, k.size, gradient, shape, { HISTORY: false });
  overElements(context, KEYS, k.size, { dOut, weights, g, starts, dk }, shape);
  const taps = width * channels;
  const parts = Math.max(1, Math.ceil(tokens / PART_TOKENS));
  const partial = commands.workspace(parts * taps);
  commands.launch(WEIGHTS, {
    buffers: { k, g, starts, parts: partial },
    params: { channels, width, sequences, tokens, parts, partTokens: PART_TOKENS },
    groups: Math.ceil((parts * taps) / 64),
  });
  inFloat32(context, dWeights, (wide) => sumParts(context, partial, wide, taps, parts));
  partial.free();
  g.free();
}
