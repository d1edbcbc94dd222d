import type {
  AttentionBackwardProblem,
  AttentionGradients,
  AttentionProblem,
  AttentionResult,
} from "@moba-js/tensor";
import type { Argument, Piece } from "../src/commands.js";
import { type Context, inFloat32 } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import attentionSource from "./attention.wgsl";
import backwardKvSource from "./attention-backward-kv.wgsl";
import backwardQSource from "./attention-backward-q.wgsl";
import rowsSource from "./backward-rows.wgsl";
import flashSource from "./flash.wgsl";
import flashBackwardSource from "./flash-backward.wgsl";
import listsSource from "./lists.wgsl";
import mergeSource from "./merge.wgsl";
import { type Mask, maskNumber, maskSpan, planRange, sequenceTable, type Wave, wholeWave } from "./range.js";
import rangeSource from "./range.wgsl";
import barrierSource from "./reduce-barrier.wgsl";
import subgroupSource from "./reduce-subgroup.wgsl";
import { chooseTile, rowQuads, type Tile, tileConstants } from "./tile.js";
import tileSource from "./tile.wgsl";
import finalSource from "./write-final.wgsl";
import mergedSource from "./write-merged.wgsl";
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

const bodyOf = (reduce: string) => tileSource + reduce + flashSource + rangeSource + attentionSource;

/** The same kernel with both ways to reduce over threads. */
const variants = <K>(make: (reduce: string, suffix: string) => K) => ({
  barrier: make(barrierSource, ""),
  subgroup: make(subgroupSource, "-subgroup"),
});

const ATTENTION = variants((reduce, suffix) =>
  kernel({
    name: `attention${suffix}`,
    source: bodyOf(reduce) + finalSource + wholeSource,
    bindings: { ...INPUTS, out: write("rows"), lse: write("u32") },
    params: RANGE_PARAMS,
  }),
);

const SPLIT = variants((reduce, suffix) =>
  kernel({
    name: `attention-split${suffix}`,
    source: bodyOf(reduce) + splitSource,
    bindings: { ...INPUTS, slots: write("vec4<f32>") },
    params: { ...RANGE_PARAMS, slots: "u32" },
  }),
);

const MERGED = variants((reduce, suffix) =>
  kernel({
    name: `attention-merged${suffix}`,
    source: bodyOf(reduce) + finalSource + mergedSource,
    bindings: { ...INPUTS, slots: read("vec4<f32>"), out: write("rows"), lse: write("u32") },
    params: { ...RANGE_PARAMS, ...SLOT_PARAMS },
  }),
);

const MERGE = kernel({
  name: "merge",
  source: mergeSource,
  bindings: { slots: read("vec4<f32>"), out: write("rows"), lse: write("u32") },
  params: { rows: "u32", slots: "u32", d: "u32" },
});

const ROWS = kernel({
  name: "backward-rows",
  source: rowsSource,
  bindings: { dOut: read("rows"), out: read("rows"), lse: read("f32"), stats: write("vec2<f32>") },
  params: { rows: "u32", d: "u32" },
});

const BACKWARD_Q = kernel({
  name: "attention-backward-q",
  source: tileSource + flashBackwardSource + rangeSource + backwardQSource,
  bindings: {
    ...INPUTS,
    dOut: read("rows"),
    stats: read("vec2<f32>"),
    slots: read("vec4<f32>"),
    dq: write("rows"),
  },
  params: { ...RANGE_PARAMS, ...SLOT_PARAMS },
});

const BACKWARD_KV = kernel({
  name: "attention-backward-kv",
  source: tileSource + listsSource + backwardKvSource,
  bindings: {
    q: read("rows"),
    k: read("rows"),
    v: read("rows"),
    dOut: read("rows"),
    stats: read("vec2<f32>"),
    lists: read("u32"),
    dk: write("rows"),
    dv: write("rows"),
  },
  params: {
    kvHeads: "u32",
    firstHead: "u32",
    headCount: "u32",
    span: "u32",
    mask: "u32",
    group: "u32",
    d: "u32",
    listed: "u32",
    scale: "f32",
    sequences: "u32",
    blocks: "u32",
    slots: "u32",
    firstToken: "u32",
    startsAt: "u32",
    countsAt: "u32",
    entriesAt: "u32",
  },
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
    ...{ owned: 1, passing: 1, weights: 1, bytesPerRow: 4 },
    ...(subgroupSize > 0 && { rowThreads: subgroupSize }),
  });

/** The tiles of the backward kernels. */
export const backwardTile = ({ workgroup }: Context, headDim: number): Tile =>
  chooseTile(workgroup, headDim, { owned: 2, passing: 2, weights: 2, bytesPerRow: 8 });

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

/** Attention of each query over the keys that a mask lets it see. */
export function attention(
  context: Context,
  problem: AttentionProblem,
  mask: Mask,
  { out, lse }: AttentionResult,
): void {
  if (out.size === 0) return;
  const { q, k, v, headDim } = problem;
  const tile = forwardTile(context, headDim);
  const splitKeys = splitKeysOf(problem, mask, tile);
  inFloat32(context, out, (wide) => {
    if (splitKeys !== Number.POSITIVE_INFINITY) {
      splitAttention(context, problem, mask, tile, splitKeys, { out: wide, lse });
      return;
    }
    const { plan, firstItem, items } = planRange(problem, groupOf(problem), tile, wholeWave(problem));
    const { definition, SUBGROUPS } = chooseVariant(context, ATTENTION);
    context.commands.launch(definition, {
      buffers: { q, k, v, plan, out: wide, lse },
      params: rangeParams(problem, mask, wholeWave(problem), firstItem),
      constants: forwardConstants(problem, tile, SUBGROUPS),
      vector: headDim % 4 === 0,
      groups: items * problem.kvHeads,
    });
  });
}

const forwardConstants = ({ headDim }: AttentionProblem, tile: Tile, SUBGROUPS: boolean) => ({
  ...tileConstants(tile, headDim),
  SUBGROUPS,
});

/** Few queries over many keys: pieces of the keys side by side, each into a slot, then merged. */
function splitAttention(
  context: Context,
  problem: AttentionProblem,
  mask: Mask,
  tile: Tile,
  splitKeys: number,
  { out, lse }: { out: Argument; lse: Argument },
): void {
  const { commands } = context;
  const { q, k, v, headDim, tokens, heads } = problem;
  const wave = wholeWave(problem);
  const { plan, firstItem, items } = planRange(problem, groupOf(problem), tile, wave, splitKeys);
  const longest = Math.max(
    ...Array.from(problem.cuSeqlensK.subarray(1), (end, s) => end - problem.cuSeqlensK[s]),
  );
  const count = Math.ceil(longest / splitKeys);
  const rows = tokens * heads;
  const slots = commands.workspace(rows * count * slotElements(headDim));
  commands.clear(slots); // sequences with fewer keys leave slots unused
  const { definition, SUBGROUPS } = chooseVariant(context, SPLIT);
  const constants = forwardConstants(problem, tile, SUBGROUPS);
  commands.launch(definition, {
    buffers: { q, k, v, plan, slots },
    params: { ...rangeParams(problem, mask, wave, firstItem), slots: count },
    constants,
    vector: headDim % 4 === 0,
    groups: items * problem.kvHeads,
  });
  commands.launch(MERGE, {
    buffers: { slots, out, lse },
    params: { rows, slots: count, d: headDim },
    constants: { DQ: rowQuads(headDim) },
    vector: headDim % 4 === 0,
    groups: rows,
  });
  slots.free();
}

/** Attention over the keys of a mask, merged with what lies in slots already: the rows of a wave. */
export function attentionMerged(
  context: Context,
  problem: AttentionProblem,
  mask: Mask,
  wave: Wave,
  slots: Slots,
  { out, lse }: { out: Argument; lse: Argument },
): void {
  const { q, k, v, headDim } = problem;
  const group = groupOf(problem);
  const tile = forwardTile(context, headDim);
  const { plan, firstItem, items } = planRange(problem, group, tile, wave);
  const { definition, SUBGROUPS } = chooseVariant(context, MERGED);
  context.commands.launch(definition, {
    buffers: { q, k, v, plan, slots: slots.piece, out, lse },
    params: {
      ...rangeParams(problem, mask, wave, firstItem),
      slots: slots.count,
      firstToken: wave.firstToken,
      waveRows: wave.tokens * group,
    },
    constants: forwardConstants(problem, tile, SUBGROUPS),
    vector: headDim % 4 === 0,
    groups: items * wave.headCount,
  });
}

/** What the backward kernels need of each query: (base-2 log-sum-exp, `D = dOut·out`), `[T, H]`. */
export function backwardRows(context: Context, problem: AttentionBackwardProblem): Piece & { free(): void } {
  const { dOut, out, lse, tokens, heads, headDim } = problem;
  const rows = tokens * heads;
  const stats = context.commands.workspace(Math.max(1, 2 * rows));
  context.commands.launch(ROWS, {
    buffers: { dOut, out, lse, stats },
    params: { rows, d: headDim },
    vector: headDim % 4 === 0,
    groups: Math.ceil(rows / 64),
  });
  return stats;
}

/** `dq` over the keys of a mask, plus what lies in slots: the rows of a wave. */
export function attentionBackwardQ(
  context: Context,
  problem: AttentionBackwardProblem,
  mask: Mask,
  wave: Wave,
  slots: Slots,
  stats: Piece,
  dq: Argument,
): void {
  const { q, k, v, dOut, headDim } = problem;
  const group = groupOf(problem);
  const tile = backwardTile(context, headDim);
  const { plan, firstItem, items } = planRange(problem, group, tile, wave);
  context.commands.launch(BACKWARD_Q, {
    buffers: { q, k, v, plan, dOut, stats, slots: slots.piece, dq },
    params: {
      ...rangeParams(problem, mask, wave, firstItem),
      slots: slots.count,
      firstToken: wave.firstToken,
      waveRows: wave.tokens * group,
    },
    constants: tileConstants(tile, headDim),
    vector: headDim % 4 === 0,
    groups: items * wave.headCount,
  });
}

/** Where a kernel finds the lists of a routing: see `lists.wgsl`. */
export interface ListLayout {
  readonly sequences: number;
  readonly blocks: number;
  readonly slots: number;
  readonly firstToken: number;
  readonly startsAt: number;
  readonly countsAt: number;
  readonly entriesAt: number;
}

/** `dk` and `dv` over the queries that a mask lets see each key, and those of the key's block's list, if there are lists. */
export function attentionBackwardKv(
  context: Context,
  problem: AttentionBackwardProblem,
  mask: Mask,
  { firstHead, headCount }: Pick<Wave, "firstHead" | "headCount">,
  stats: Piece,
  lists: { readonly piece: Piece; readonly layout: ListLayout; readonly blockSize: number } | undefined,
  { dk, dv }: { dk: Argument; dv: Argument },
): void {
  const { q, k, v, dOut, headDim, kvHeads, scale } = problem;
  const tile = backwardTile(context, headDim);
  const range = lists ? undefined : planKeys(problem, tile);
  const layout = lists?.layout ?? (range as KeyPlan).layout;
  const items = lists ? layout.blocks * Math.ceil(lists.blockSize / tile.BQ) : (range as KeyPlan).items;
  context.commands.launch(BACKWARD_KV, {
    buffers: { q, k, v, dOut, stats, lists: lists?.piece ?? (range as KeyPlan).plan, dk, dv },
    params: {
      ...{ kvHeads, firstHead, headCount, scale, d: headDim, group: groupOf(problem), ...layout },
      ...{ mask: maskNumber(mask), span: lists?.blockSize ?? maskSpan(mask), listed: lists ? 1 : 0 },
    },
    constants: { ...tileConstants(tile, headDim), LIST_TILE: tile.BQ },
    vector: headDim % 4 === 0,
    groups: items * headCount,
  });
}

interface KeyPlan {
  readonly plan: Uint32Array;
  readonly layout: ListLayout;
  readonly items: number;
}

/** Tiles of keys, those that causal queries see most often first. */
function planKeys(problem: AttentionProblem, { BQ }: Tile): KeyPlan {
  const { cuSeqlensK } = problem;
  const table = sequenceTable(problem, new Int32Array(cuSeqlensK.length));
  const items: number[] = [];
  for (let s = 0; s + 1 < cuSeqlensK.length; s++) {
    for (let key = 0; key < cuSeqlensK[s + 1] - cuSeqlensK[s]; key += BQ) items.push(s, key);
  }
  const layout = {
    sequences: cuSeqlensK.length - 1,
    blocks: 0,
    slots: 0,
    firstToken: 0,
    startsAt: table.length,
    countsAt: 0,
    entriesAt: 0,
  };
  return { plan: Uint32Array.from([...table, ...items]), layout, items: items.length / 2 };
}

/** The gradients of {@link attention}. */
export function attentionBackward(
  context: Context,
  problem: AttentionBackwardProblem,
  mask: Mask,
  { dq, dk, dv }: AttentionGradients,
): void {
  const { commands } = context;
  const stats = backwardRows(context, problem);
  const wave = wholeWave(problem);
  const noSlots = commands.workspace(4);
  inFloat32(context, dq, (wide) =>
    attentionBackwardQ(context, problem, mask, wave, { piece: noSlots, count: 0 }, stats, wide),
  );
  inFloat32(context, dk, (wideK) =>
    inFloat32(context, dv, (wideV) =>
      attentionBackwardKv(context, problem, mask, wave, stats, undefined, { dk: wideK, dv: wideV }),
    ),
  );
  noSlots.free();
  stats.free();
}
