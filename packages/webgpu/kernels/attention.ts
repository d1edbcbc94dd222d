import { type AttentionProblem, type AttentionResult, bytesPerElement, type Tensor } from "@moba-js/tensor";
import type { Piece } from "../src/commands.js";
import { type Context, inFloat32 } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import attentionSource from "./attention.wgsl";
import flashSource from "./flash.wgsl";
import mergeSource from "./merge.wgsl";
import nonFiniteSource from "./non-finite.wgsl";
import noPartsSource from "./parts-none.wgsl";
import slotPartsSource from "./parts-slots.wgsl";
import { type Mask, maskNumber, maskSpan, planRange, type Wave, wholeWave } from "./range.js";
import rangeSource from "./range.wgsl";
import barrierSource from "./reduce-barrier.wgsl";
import subgroupSource from "./reduce-subgroup.wgsl";
import { chooseTile, rowQuads, type Tile, tileConstants } from "./tile.js";
import tileSource from "./tile.wgsl";
import { type BoundPart, boundParts, mostRows, rangesOf, tokenWindow } from "./windows.js";
import finalSource from "./write-final.wgsl";
import splitSource from "./write-split.wgsl";
import wholeSource from "./write-whole.wgsl";

const RANGE_PARAMS = {
  firstItem: "u32",
  kvHeads: "u32",
  firstHead: "u32",
  headCount: "u32",
  span: "u32",
  mask: "u32",
  group: "u32",
  d: "u32",
  scale: "f32",
} as const;

const SLOT_PARAMS = { slots: "u32", firstToken: "u32", waveRows: "u32" } as const;

const INPUTS = { q: read("rows"), k: read("rows"), v: read("rows"), plan: read("vec4<u32>") } as const;

const bodyOf = (reduce: string) =>
  nonFiniteSource + tileSource + reduce + flashSource + rangeSource + attentionSource;

/** The same kernel with both ways to reduce over threads. */
const variants = <K>(make: (reduce: string, suffix: string) => K) => ({
  barrier: make(barrierSource, ""),
  subgroup: make(subgroupSource, "-subgroup"),
});

const ATTENTION = variants((reduce, suffix) =>
  kernel({
    name: `attention${suffix}`,
    source: bodyOf(reduce) + noPartsSource + finalSource + wholeSource,
    bindings: { ...INPUTS, out: write("rows"), lse: write("u32") },
    params: RANGE_PARAMS,
  }),
);

const SPLIT = variants((reduce, suffix) =>
  kernel({
    name: `attention-split${suffix}`,
    source: bodyOf(reduce) + noPartsSource + splitSource,
    bindings: { ...INPUTS, slots: write("vec4<f32>") },
    params: { ...RANGE_PARAMS, slots: "u32" },
  }),
);

const MERGED = variants((reduce, suffix) =>
  kernel({
    name: `attention-merged${suffix}`,
    source: bodyOf(reduce) + slotPartsSource + finalSource + wholeSource,
    bindings: { ...INPUTS, slots: read("vec4<f32>"), out: write("rows"), lse: write("u32") },
    params: { ...RANGE_PARAMS, ...SLOT_PARAMS },
  }),
);

const MERGE = kernel({
  name: "merge",
  source: mergeSource,
  bindings: { slots: read("vec4<f32>"), out: write("rows"), lse: write("u32") },
  params: { firstRow: "u32", slots: "u32", d: "u32" },
});

/** The variant of a kernel for the device: with subgroups, each row's threads lie in one. */
export function chooseVariant<K>(
  { subgroupSize }: Context,
  { barrier, subgroup }: { readonly barrier: K; readonly subgroup: K },
): { readonly definition: K; readonly SUBGROUPS: boolean } {
  const SUBGROUPS = subgroupSize > 0;
  return { definition: SUBGROUPS ? subgroup : barrier, SUBGROUPS };
}

/** `G`. */
export const groupOf = ({ heads, kvHeads }: Pick<AttentionProblem, "heads" | "kvHeads">): number =>
  heads / kvHeads;

/** The tiles of the forward kernels. */
export const forwardTile = ({ workgroup, subgroupSize }: Context, headDim: number): Tile =>
  chooseTile(workgroup, headDim, {
    ...{ owned: 1, passing: 1, weights: 1, bytesPerRow: 8 },
    ...(subgroupSize > 0 && { rowThreads: subgroupSize }),
  });

/** Elements of one slot: a row of output in groups of four, and one group more. */
export const slotElements = (headDim: number): number => 4 * (rowQuads(headDim) + 1);

/** Parts of rows in slots, made by other kernels. */
export interface Slots {
  readonly piece: Piece;
  /** Slots of each row. */
  readonly count: number;
}

const rangeParams = (
  problem: AttentionProblem,
  mask: Mask,
  { firstHead, headCount }: Wave,
  firstItem: number,
) => ({
  firstItem,
  kvHeads: problem.kvHeads,
  firstHead,
  headCount,
  span: maskSpan(mask),
  mask: maskNumber(mask),
  group: groupOf(problem),
  d: problem.headDim,
  scale: problem.scale,
});

/** Workgroups that a device should have at least, and keys that one should have, when the keys are split for it. */
const FEW_WORKGROUPS = 128;
const LEAST_SPLIT = 512;

/** How many keys each piece has when the queries alone are too few to fill the device; Infinity when they are not. */
function splitKeysOf(problem: AttentionProblem, mask: Mask, { BQ, BK }: Tile): number {
  const whole = Number.POSITIVE_INFINITY;
  if (mask.kind !== "all" && mask.kind !== "causal") return whole;
  const workgroups = Math.ceil((problem.tokens * groupOf(problem)) / BQ) * problem.kvHeads;
  const longest = Math.max(
    0,
    ...Array.from(problem.cuSeqlensK.subarray(1), (end, s) => end - problem.cuSeqlensK[s]),
  );
  if (workgroups === 0 || workgroups >= FEW_WORKGROUPS || longest < 2 * LEAST_SPLIT) return whole;
  const pieces = Math.min(Math.ceil((4 * FEW_WORKGROUPS) / workgroups), Math.floor(longest / LEAST_SPLIT));
  return Math.ceil(longest / pieces / BK) * BK;
}

/** Queries and keys that a forward kernel can be given at once. */
export const mostBound = (context: Context, { heads, kvHeads, headDim, k }: AttentionProblem) => ({
  queries: mostRows(context, 4 * heads * headDim),
  keys: mostRows(context, bytesPerElement(k.dtype) * kvHeads * headDim),
});

/** The windows of queries, keys and outputs that a part needs. */
function partWindows(
  { q, k, v, heads, kvHeads, headDim }: AttentionProblem,
  { queries, keys }: BoundPart,
  { out, lse }: Outputs,
) {
  const rows = { first: queries.firstToken, end: queries.firstToken + queries.tokens };
  return {
    inputs: {
      q: tokenWindow(q, heads * headDim, rows),
      k: tokenWindow(k, kvHeads * headDim, keys),
      v: tokenWindow(v, kvHeads * headDim, keys),
    },
    outputs: { out: tokenWindow(out, heads * headDim, rows), lse: tokenWindow(lse, heads, rows) },
  };
}

interface Outputs {
  readonly out: Tensor | Piece;
  readonly lse: Tensor | Piece;
}

/** Attention of each query over the keys that a mask lets it see. */
export function attention(
  context: Context,
  problem: AttentionProblem,
  mask: Mask,
  { out, lse }: AttentionResult,
): void {
  if (out.size === 0) return;
  const { headDim } = problem;
  const tile = forwardTile(context, headDim);
  const splitKeys = splitKeysOf(problem, mask, tile);
  const most = mostBound(context, problem);
  const wave = wholeWave(problem);
  inFloat32(context, out, (wide) => {
    for (const part of boundParts(problem, mask, wave, most)) {
      const outputs = { out: wide, lse };
      if (splitKeys !== Number.POSITIVE_INFINITY || part.keys.end - part.keys.first > most.keys) {
        splitAttention(context, problem, mask, tile, part, Math.min(splitKeys, most.keys), outputs);
        continue;
      }
      const { plan, firstItem, items } = planRange(problem, groupOf(problem), tile, part.queries);
      const { definition, SUBGROUPS } = chooseVariant(context, ATTENTION);
      const windows = partWindows(problem, part, outputs);
      context.commands.launch(definition, {
        buffers: { ...windows.inputs, plan, ...windows.outputs },
        params: rangeParams(problem, mask, wave, firstItem),
        constants: forwardConstants(context, problem, tile, SUBGROUPS),
        vector: headDim % 4 === 0,
        groups: items * problem.kvHeads,
      });
    }
  });
}

/** The constants of the forward kernels. */
export const forwardConstants = (
  { subgroupSize }: Context,
  { headDim }: Pick<AttentionProblem, "headDim">,
  tile: Tile,
  SUBGROUPS: boolean,
) => ({ ...tileConstants(tile, headDim, SUBGROUPS ? subgroupSize : undefined), SUBGROUPS });

/** Pieces of the keys side by side, or window by window where they cannot be bound at once: each into a slot, then merged. */
function splitAttention(
  context: Context,
  problem: AttentionProblem,
  mask: Mask,
  tile: Tile,
  part: BoundPart,
  piece: number,
  outputs: Outputs,
): void {
  const { commands } = context;
  const { headDim, heads } = problem;
  const { firstToken, tokens } = part.queries;
  const windows = rangesOf(part.keys, mostBound(context, problem).keys);
  const longest = Math.max(0, ...windows.map(({ first, end }) => end - first));
  const slotsOfWindow = Math.ceil(longest / piece);
  const count = windows.length * slotsOfWindow;
  const rowElements = heads * count * slotElements(headDim);
  const { definition, SUBGROUPS } = chooseVariant(context, SPLIT);
  const constants = forwardConstants(context, problem, tile, SUBGROUPS);
  const vector = headDim % 4 === 0;
  for (const { first, end } of rangesOf(
    { first: firstToken, end: firstToken + tokens },
    mostRows(context, 4 * rowElements),
  )) {
    const queries = { firstToken: first, tokens: end - first };
    const slots = commands.workspace((end - first) * rowElements);
    commands.clear(slots); // sequences with fewer keys leave slots unused
    windows.forEach((keys, i) => {
      const cut = { ...keys, piece, firstSlot: i * slotsOfWindow };
      const { plan, firstItem, items } = planRange(problem, groupOf(problem), tile, queries, cut);
      commands.launch(definition, {
        buffers: {
          ...partWindows(problem, { queries, keys }, outputs).inputs,
          plan,
          slots: { ...slots, origin: first * rowElements },
        },
        params: { ...rangeParams(problem, mask, wholeWave(problem), firstItem), slots: count },
        constants,
        vector,
        groups: items * problem.kvHeads,
      });
    });
    commands.launch(MERGE, {
      buffers: { slots, ...partWindows(problem, { queries, keys: part.keys }, outputs).outputs },
      params: { firstRow: first * heads, slots: count, d: headDim },
      constants: { DQ: rowQuads(headDim) },
      vector,
      groups: (end - first) * heads,
    });
    slots.free();
  }
}

/** Attention over the keys of a mask, merged with what lies in slots already: the rows of a wave. */
export function attentionMerged(
  context: Context,
  problem: AttentionProblem,
  mask: Mask,
  wave: Wave,
  slots: Slots,
  outputs: Outputs,
): void {
  const { headDim } = problem;
  const group = groupOf(problem);
  const tile = forwardTile(context, headDim);
  const { definition, SUBGROUPS } = chooseVariant(context, MERGED);
  for (const part of boundParts(problem, mask, wave, mostBound(context, problem))) {
    const { plan, firstItem, items } = planRange(problem, group, tile, part.queries);
    const windows = partWindows(problem, part, outputs);
    context.commands.launch(definition, {
      buffers: { ...windows.inputs, plan, slots: slots.piece, ...windows.outputs },
      params: {
        ...rangeParams(problem, mask, wave, firstItem),
        slots: slots.count,
        firstToken: wave.firstToken,
        waveRows: wave.tokens * group,
      },
      constants: forwardConstants(context, problem, tile, SUBGROUPS),
      vector: headDim % 4 === 0,
      groups: items * wave.headCount,
    });
  }
}
