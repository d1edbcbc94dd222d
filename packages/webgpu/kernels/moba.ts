import {
  type AttendProblem,
  type AttentionResult,
  type CentroidsProblem,
  cuBlocks,
  type RouteCentroidsProblem,
  type RouteProblem,
  type Tensor,
} from "@moba-js/tensor";
import type { Piece } from "../src/commands.js";
import { type Context, inFloat32 } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import attendSource from "./attend.wgsl";
import attendMatrixSource from "./attend-matrix.wgsl";
import {
  attentionMerged,
  chooseVariant,
  forwardConstants,
  forwardTile,
  groupOf,
  mostBound,
} from "./attention.js";
import centroidsSource from "./centroids.wgsl";
import flashSource from "./flash.wgsl";
import { buildLists, LIST_PARAMS, listHeads } from "./lists.js";
import listsSource from "./lists.wgsl";
import mergeSlotsSource from "./merge-slots.wgsl";
import nonFiniteSource from "./non-finite.wgsl";
import queryRowSource from "./query-row.wgsl";
import { ownMask, planRange, sequenceTable, type Wave } from "./range.js";
import rangeSource from "./range.wgsl";
import barrierSource from "./reduce-barrier.wgsl";
import subgroupSource from "./reduce-subgroup.wgsl";
import routeSource from "./route.wgsl";
import keptSource from "./route-kept.wgsl";
import spilledSource from "./route-spilled.wgsl";
import { chooseTile, rowQuads, tileConstants } from "./tile.js";
import tileSource from "./tile.wgsl";
import { slotWaves, slotWorkspace } from "./waves.js";
import { blockWindows, mostRows, rangesOf, tokenWindow } from "./windows.js";

const CENTROIDS = kernel({
  name: "centroids",
  source: listsSource + centroidsSource,
  bindings: { k: read("elements"), lists: read("u32"), out: write("f32") },
  params: { first: "u32", end: "u32", channels: "u32", sequences: "u32", blockSize: "u32" },
});

const routeKernel = (name: string, kept: string) =>
  kernel({
    name,
    source: nonFiniteSource + tileSource + rangeSource + kept + routeSource,
    bindings: {
      q: read("rows"),
      centroids: read("rows"),
      plan: read("vec4<u32>"),
      kept: write("u32"),
      indices: write("i32"),
    },
    params: {
      ...({ firstItem: "u32", kvHeads: "u32", group: "u32", d: "u32" } as const),
      ...({ mask: "u32", causal: "u32", span: "u32", choices: "u32", slots: "u32" } as const),
      ...({ firstCentroid: "u32", endCentroid: "u32", begins: "u32", finishes: "u32" } as const),
    },
  });

const ROUTE = routeKernel("route", keptSource);
const ROUTE_SPILLED = routeKernel("route-spilled", spilledSource);

const ATTEND_PARAMS = { ...LIST_PARAMS, d: "u32", scale: "f32" } as const;

const attendKernel = (name: string, reduce: string) =>
  kernel({
    name,
    source: nonFiniteSource + tileSource + reduce + flashSource + listsSource + queryRowSource + attendSource,
    bindings: {
      q: read("rows"),
      k: read("rows"),
      v: read("rows"),
      lists: read("u32"),
      slots: write("vec4<f32>"),
    },
    params: ATTEND_PARAMS,
  });

const ATTEND = {
  barrier: attendKernel("attend", barrierSource),
  subgroup: attendKernel("attend-subgroup", subgroupSource),
};

const ATTEND_MATRIX = kernel({
  name: "attend-matrix",
  source: listsSource + queryRowSource + attendMatrixSource,
  bindings: {
    q: read("vec4<u32>"),
    k: read("vec4<u32>"),
    v: read("vec4<u32>"),
    lists: read("u32"),
    slots: write("vec4<f32>"),
  },
  params: ATTEND_PARAMS,
});

const MERGE_SLOTS = kernel({
  name: "merge-slots",
  source: mergeSlotsSource,
  bindings: { slots: read("vec4<f32>"), out: write("quads"), lse: write("u32") },
  params: {
    ...({ rows: "u32", waveRows: "u32", slots: "u32", group: "u32", kvHeads: "u32" } as const),
    ...({ firstHead: "u32", firstToken: "u32", d: "u32" } as const),
  },
});

/** The mean of each block's keys. */
export function centroids(context: Context, problem: CentroidsProblem, out: Tensor | Piece): void {
  const { k, cuSeqlens, blockSize } = problem;
  const channels = k.shape[1] * k.shape[2];
  const starts = cuBlocks(cuSeqlens, blockSize);
  const lists = Uint32Array.from(sequenceTable({ cuSeqlens, cuSeqlensK: cuSeqlens }, starts));
  const rows = mostRows(context, 4 * channels);
  for (const { blocks, tokens } of blockWindows(cuSeqlens, blockSize, { blocks: rows, tokens: rows })) {
    const [first, end] = [blocks.first * channels, blocks.end * channels];
    context.commands.launch(CENTROIDS, {
      buffers: { k: tokenWindow(k, channels, tokens), lists, out: tokenWindow(out, channels, blocks) },
      params: { first, end, channels, sequences: cuSeqlens.length - 1, blockSize },
      groups: Math.ceil((end - first) / 64),
    });
  }
}

/** Routing by the centroids of the keys. */
export function route(context: Context, problem: RouteProblem, indices: Tensor<"i32">): void {
  const { k, cuSeqlensK, blockSize, kvHeads, headDim } = problem;
  const cuCentroids = cuBlocks(cuSeqlensK, blockSize);
  const means = context.commands.workspace(Math.max(1, (cuCentroids.at(-1) as number) * kvHeads * headDim));
  centroids(context, { k, cuSeqlens: cuSeqlensK, blockSize }, means);
  choose(context, { ...problem, centroids: means, cuCentroids, kvHeads }, indices);
  means.free();
}

/** Routing by centroids that are there. */
export const routeCentroids = (
  context: Context,
  problem: RouteCentroidsProblem,
  indices: Tensor<"i32">,
): void => choose(context, { ...problem, kvHeads: problem.centroids.shape[1], causal: true }, indices);

/** Choices of a query whose running list fits into registers. */
const MOST_KEPT = 32;

/** Places of a running list: few different numbers, so that few pipelines are compiled. */
const keptPlaces = (choices: number): number => Math.max(8, 2 ** Math.ceil(Math.log2(Math.max(1, choices))));

function choose(
  context: Context,
  problem: Omit<RouteCentroidsProblem, "centroids"> & {
    readonly centroids: Tensor | Piece;
    readonly kvHeads: number;
    readonly causal: boolean;
  },
  indices: Tensor<"i32">,
): void {
  const { commands, workgroup } = context;
  const { q, centroids: means, kvHeads, blockSize, topK, slots, causal } = problem;
  const [tokens, heads, headDim] = q.shape;
  if (indices.size === 0) return;
  const choices = causal ? Math.min(topK - 1, slots) : slots;
  const KEPT = keptPlaces(choices);
  const centroidRows = { first: 0, end: problem.cuCentroids[problem.cuCentroids.length - 1] };
  // Where the centroids cannot be bound at once, the running lists wait in a buffer from one window to the next.
  const windows = rangesOf(centroidRows, mostRows(context, 4 * kvHeads * headDim));
  if (windows.length === 0) windows.push(centroidRows);
  const isKept = choices <= MOST_KEPT && windows.length === 1;
  const tile = chooseTile(workgroup, headDim, { owned: 1, passing: 1, weights: 1 });
  const group = heads / kvHeads;
  const tokenBytes = 4 * heads * Math.max(headDim, slots, isKept ? 1 : 2 * KEPT);
  // Running lists have room for whole tiles.
  const mostTokens = Math.max(1, mostRows(context, tokenBytes) - (isKept ? 0 : tile.BQ));
  for (const { first, end } of rangesOf({ first: 0, end: tokens }, mostTokens)) {
    const range = { firstToken: first, tokens: end - first };
    const { plan, firstItem, items } = planRange(problem, group, tile, range);
    const groups = items * kvHeads;
    const kept = commands.workspace(isKept ? 4 : groups * KEPT * tile.BQ * 2, "u32");
    windows.forEach((window, i) => {
      commands.launch(isKept ? ROUTE : ROUTE_SPILLED, {
        buffers: {
          q: tokenWindow(q, heads * headDim, { first, end }),
          centroids: tokenWindow(means, kvHeads * headDim, window),
          plan,
          kept,
          indices: tokenWindow(indices, heads * slots, { first, end }),
        },
        params: {
          ...{ firstItem, kvHeads, group, d: headDim, firstCentroid: window.first, endCentroid: window.end },
          ...{ mask: 0, causal: causal ? 1 : 0, span: blockSize, choices, slots },
          ...{ begins: i === 0 ? 1 : 0, finishes: i === windows.length - 1 ? 1 : 0 },
        },
        constants: { ...tileConstants(tile, headDim), KEPT },
        vector: headDim % 4 === 0,
        groups,
      });
    });
    kept.free();
  }
}

/** Attention over routed blocks by the slot plan: lists of queries block by block, slots, merge. */
export function attend(context: Context, problem: AttendProblem, { out, lse }: AttentionResult): void {
  if (out.size === 0) return;
  const matrices = matrixShape(context, problem);
  if (matrices) {
    attendInSlots(context, problem, matrices, (wave, slots) =>
      mergeSlots(context, problem, wave, slots, { out, lse }),
    );
    return;
  }
  const shape = tileShape(context, problem);
  const mask = ownMask(problem.routing);
  const count = problem.routing.indices.shape[2];
  inFloat32(context, out, (wide) =>
    attendInSlots(context, problem, shape, (wave, slots) =>
      attentionMerged(context, problem, mask, wave, { piece: slots, count }, { out: wide, lse }),
    ),
  );
}

/** A kernel that attends a block's list, and what it works at at a time. */
interface AttendShape {
  readonly definition: typeof ATTEND_MATRIX;
  readonly constants: Readonly<Record<string, number | boolean>>;
  /** Entries of a list. */
  readonly entries: number;
  /** Whether a row's own block is in a slot like the others; if not, the merge attends it. */
  readonly withOwn: boolean;
}

function tileShape(context: Context, problem: AttendProblem): AttendShape {
  const tile = forwardTile(context, problem.headDim);
  const { definition, SUBGROUPS } = chooseVariant(context, ATTEND);
  const constants = forwardConstants(context, problem, tile, SUBGROUPS);
  return { definition, constants, entries: tile.BQ, withOwn: false };
}

/** Keys that a subgroup scores at a time, and rows and columns of a matrix: as in `attend-matrix.wgsl`. */
const CHUNK = 32;
const SIDE = 16;
/** Chunks of keys, and matrices of channels, that registers have room for. */
const MOST_CHUNKS = 4;
const MOST_STEPS = 8;
/** Subgroups of a workgroup, the best first. */
const SUBGROUP_COUNTS: readonly number[] = [4, 2];

/** The kernel on the matrix units; nothing where a problem does not suit it. */
function matrixShape(
  { matrices, workgroup }: Context,
  { dtype, headDim, routing }: AttendProblem,
): AttendShape | undefined {
  const CHUNKS = Math.ceil(routing.blockSize / CHUNK);
  const STEPS = Math.ceil(headDim / SIDE);
  if (!matrices || dtype !== "f16" || headDim % 8 > 0 || CHUNKS > MOST_CHUNKS || STEPS > MOST_STEPS) {
    return undefined;
  }
  const pitch = 2 * STEPS + 1;
  const bytesOf = (subgroups: number) =>
    16 * (CHUNK * CHUNKS * pitch + subgroups * SIDE * Math.max(pitch, 9)) + 16;
  const SUBGROUP_COUNT = SUBGROUP_COUNTS.find((count) => bytesOf(count) <= workgroup.storage);
  if (!SUBGROUP_COUNT) return undefined;
  const constants = {
    ...{ MATRICES: true, SUBGROUPS: true, CAUSAL: routing.causal, SUBGROUP_COUNT, STEPS, CHUNKS },
    FETCHED: Math.ceil((CHUNKS * 2 * STEPS) / SUBGROUP_COUNT),
    PAIRS: Math.ceil(CHUNKS / 2),
    OUT_CHUNKS: Math.ceil(STEPS / 2),
    DQ: rowQuads(headDim),
  };
  return { definition: ATTEND_MATRIX, constants, entries: SIDE * SUBGROUP_COUNT, withOwn: true };
}

/** Attends the blocks that rows are routed to, into slots, which `merge` makes results of, wave by wave. */
function attendInSlots(
  context: Context,
  problem: AttendProblem,
  { definition, constants, entries, withOwn }: AttendShape,
  merge: (wave: Wave, slots: Piece) => void,
): void {
  const { q, k, v, heads, kvHeads, headDim, scale, routing } = problem;
  const { cuSeqlensK, blockSize } = routing;
  const count = routing.indices.shape[2];
  const mostKeys = mostBound(context, problem).keys;
  const windows = blockWindows(cuSeqlensK, blockSize, { blocks: Number.POSITIVE_INFINITY, tokens: mostKeys });
  const headLimit = Math.max(1, listHeads(context, windows[windows.length - 1].blocks.end, entries));
  const group = groupOf(problem);
  for (const wave of slotWaves(context, problem, count, headLimit)) {
    const { firstHead, firstToken, tokens } = wave;
    const slots = slotWorkspace(context, problem, wave, count);
    const lists = buildLists(context, problem, wave, entries, {
      slots: { piece: slots, places: count },
      leastTiles: 0,
      withOwn,
    });
    for (const { blocks, tokens: keys } of windows) {
      context.commands.launch(definition, {
        buffers: {
          q: tokenWindow(q, heads * headDim, { first: firstToken, end: firstToken + tokens }),
          k: tokenWindow(k, kvHeads * headDim, keys),
          v: tokenWindow(v, kvHeads * headDim, keys),
          lists: lists.piece,
          slots,
        },
        params: {
          ...{ ...lists.layout, kvHeads, firstHead, firstToken, waveRows: tokens * group, blockSize },
          ...{ firstBlock: blocks.first, endBlock: blocks.end, places: count, group, d: headDim, scale },
        },
        constants,
        vector: headDim % 4 === 0,
        groups: lists.mostTiles,
      });
    }
    lists.piece.free();
    merge(wave, slots);
    slots.free();
  }
}

/** Threads of a workgroup: as in `merge-slots.wgsl`. */
const MERGE_THREADS = 128;

/** The results of the rows of a wave, of whose blocks every one has its slot. */
function mergeSlots(
  { commands }: Context,
  problem: AttendProblem,
  { firstHead, headCount, firstToken, tokens }: Wave,
  slots: Piece,
  { out, lse }: AttentionResult,
): void {
  const { heads, kvHeads, headDim, routing } = problem;
  const group = groupOf(problem);
  const waveRows = tokens * group;
  const range = { first: firstToken, end: firstToken + tokens };
  const DQ = rowQuads(headDim);
  commands.launch(MERGE_SLOTS, {
    buffers: { slots, out: tokenWindow(out, heads * headDim, range), lse: tokenWindow(lse, heads, range) },
    params: {
      ...{ rows: headCount * waveRows, waveRows, slots: routing.indices.shape[2], group, kvHeads },
      ...{ firstHead, firstToken, d: headDim },
    },
    constants: { DQ },
    groups: Math.ceil((headCount * waveRows) / Math.floor(MERGE_THREADS / DQ)),
  });
}
