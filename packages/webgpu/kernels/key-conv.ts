import type { CuSeqlens, FloatDType, KeyConvHistoryProblem, KeyConvProblem, Tensor } from "@moba-js/tensor";
import type { Argument, Piece } from "../src/commands.js";
import { type Context, inFloat32 } from "../src/context.js";
import { type Kernel, kernel, read, write } from "../src/kernel.js";
import mainSource from "./elementwise.wgsl";
import { GATHER, gather } from "./embedding.js";
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
import { mostRows, type Range, rangesOf, tokenWindow } from "./windows.js";

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
    firstPart: "u32",
    endPart: "u32",
    partTokens: "u32",
  },
});

const HISTORY = kernel({
  name: "key-conv-history",
  source: historySource + gatherSource,
  bindings: { k: read("u32"), history: read("u32"), starts: read("u32"), out: write("u32") },
  params: {
    ...GATHER,
    ...({ channels: "u32", width: "u32", firstSequence: "u32", endSequence: "u32" } as const),
  },
});

/** Tokens that one thread adds up. */
const PART_TOKENS = 64;

const tableOf = (cuSeqlens: CuSeqlens): Uint32Array => Uint32Array.from(cuSeqlens);

type Shape = ReturnType<typeof shapeOf>;

function shapeOf({ k, width, kvHeads, headDim, cuSeqlens }: KeyConvProblem) {
  return { size: k.size, channels: kvHeads * headDim, width, sequences: cuSeqlens.length - 1 };
}

/** Groups of four elements that are worked at together, what they take from the keys around them included. */
function quadRanges(
  context: Context,
  { size, channels, width, sequences }: Shape,
  history: boolean,
): Range[] {
  const around = (width - 1) * channels;
  // Each token may be a sequence of its own, with a history.
  const bytes = 16 * (history && sequences > 1 ? width : 1);
  const most = Math.floor((mostRows(context, bytes) * 4 - 2 * around) / 4) - 1;
  return rangesOf({ first: 0, end: Math.ceil(size / 4) }, Math.max(1, most));
}

/** The elements of some groups of four, and `before` and `after` them. */
const elementsOf = ({ first, end }: Range, size: number, before = 0, after = 0): Range => ({
  first: Math.max(0, 4 * first - before),
  end: Math.min(size, 4 * end + after),
});

/** The histories of the sequences that some tokens belong to. */
function historyWindow(
  history: Tensor<FloatDType>,
  { cuSeqlens, width, kvHeads, headDim }: KeyConvProblem,
  { first, end }: Range,
): Piece {
  const channels = kvHeads * headDim;
  const sequenceOf = (token: number) =>
    Math.max(
      0,
      cuSeqlens.findLastIndex((begin) => begin <= token),
    );
  const [low, high] = [Math.floor(first / channels), Math.ceil(end / channels) - 1].map(sequenceOf);
  return tokenWindow(history, (width - 1) * channels, { first: low, end: high + 1 });
}

/** `k'_t = k_t + SiLU(Σ_l w_l ⊙ k_{t−l})`. */
export function keyConv(
  context: Context,
  problem: KeyConvProblem & { history?: Tensor<FloatDType> },
  out: Tensor<FloatDType>,
): void {
  const { k, weights, history, cuSeqlens } = problem;
  const shape = shapeOf(problem);
  const { size } = shape;
  const starts = tableOf(cuSeqlens);
  for (const quads of quadRanges(context, shape, history !== undefined)) {
    const elements = elementsOf(quads, size);
    const keys = tokenWindow(k, 1, elementsOf(quads, size, (shape.width - 1) * shape.channels));
    const past = history ? historyWindow(history, problem, elements) : keys;
    const buffers = { k: keys, weights, history: past, starts, out: tokenWindow(out, 1, elements) };
    overQuads(context, CONV, quads, buffers, shape, { HISTORY: history !== undefined });
  }
}

/** Each sequence's last `W − 1` keys. */
export function keyConvHistory(
  context: Context,
  { k, width, cuSeqlens, history }: KeyConvHistoryProblem,
  next: Tensor<FloatDType>,
): void {
  const { commands } = context;
  const channels = k.shape[1] * k.shape[2];
  const starts = tableOf(cuSeqlens);
  const constants = { PACKED: k.dtype !== "f32", HISTORY: history !== undefined };
  const sequences = cuSeqlens.length - 1;
  const isWhole = k.size <= mostRows(context, 4) && next.size <= mostRows(context, 4);
  if (!isWhole) commands.clear(next);
  const step = isWhole ? Math.max(1, sequences) : 1;
  for (const { first, end } of rangesOf({ first: 0, end: sequences }, step)) {
    const rows = (tensor: Tensor<FloatDType>) => tokenWindow(tensor, (width - 1) * channels, { first, end });
    const firstKey = isWhole ? 0 : Math.max(cuSeqlens[first], cuSeqlens[end] - (width - 1));
    const keys = tokenWindow(k, channels, { first: firstKey, end: cuSeqlens[end] });
    const elements = { first: first * (width - 1) * channels, end: end * (width - 1) * channels };
    const buffers = { k: keys, history: history ? rows(history) : keys, starts, out: rows(next) };
    const params = { channels, width, firstSequence: first, endSequence: end };
    gather(context, HISTORY, elements, !isWhole, buffers, params, constants);
  }
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
  const { size, channels, width, sequences } = shape;
  const starts = tableOf(problem.cuSeqlens);
  const around = (width - 1) * channels;
  const g = commands.workspace(Math.max(1, size));
  const ranges = quadRanges(context, shape, false);
  for (const quads of ranges) {
    const [elements, before] = [elementsOf(quads, size), elementsOf(quads, size, around)];
    const keys = tokenWindow(k, 1, before);
    const given = { k: keys, history: keys, dOut: tokenWindow(dOut, 1, elements) };
    const buffers = { ...given, weights, starts, g: tokenWindow(g, 1, elements) };
    overQuads(context, GRADIENT, quads, buffers, shape, { HISTORY: false });
  }
  for (const quads of ranges) {
    const [elements, after] = [elementsOf(quads, size), elementsOf(quads, size, 0, around)];
    const gradients = { dOut: tokenWindow(dOut, 1, elements), g: tokenWindow(g, 1, after) };
    overQuads(
      context,
      KEYS,
      quads,
      { ...gradients, weights, starts, dk: tokenWindow(dk, 1, elements) },
      shape,
    );
  }
  const taps = width * channels;
  const mostParts = mostRows(context, 4 * taps);
  const mostTokens = Math.max(1, mostRows(context, 4 * channels) - width);
  const partTokens = Math.max(Math.min(PART_TOKENS, mostTokens), Math.ceil(tokens / mostParts));
  const parts = Math.max(1, Math.ceil(tokens / partTokens));
  const partial = commands.workspace(parts * taps);
  const partsTogether = Math.max(1, Math.floor(mostTokens / partTokens));
  for (const { first, end } of rangesOf({ first: 0, end: parts }, partsTogether)) {
    const range = { first: first * partTokens, end: Math.min(tokens, end * partTokens) };
    const before = { first: Math.max(0, range.first - width + 1), end: range.end };
    commands.launch(WEIGHTS, {
      buffers: {
        k: tokenWindow(k, channels, before),
        g: tokenWindow(g, channels, range),
        starts,
        parts: partial,
      },
      params: { channels, width, sequences, tokens, firstPart: first, endPart: end, partTokens },
      groups: Math.ceil(((end - first) * taps) / 64),
    });
  }
  inFloat32(context, dWeights, (wide) => sumParts(context, partial, wide, taps, parts));
  partial.free();
  g.free();
}

/** Launches an elementwise kernel over some groups of four elements. */
function overQuads<B extends string>(
  { commands }: Context,
  definition: Kernel<B, keyof typeof SHAPE>,
  { first, end }: Range,
  buffers: Readonly<Record<B, Argument>>,
  shape: Shape,
  constants: Readonly<Record<string, boolean>> = {},
): void {
  const params = { ...shape, firstQuad: first, endQuad: end };
  commands.launch(definition, { buffers, params, constants, groups: Math.ceil((end - first) / 64) });
}
