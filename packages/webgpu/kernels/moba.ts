import {
  type AttendBackwardProblem,
  type AttendProblem,
  type AttentionGradients,
  type AttentionResult,
  type CentroidsProblem,
  cuBlocks,
  DeviceError,
  type RouteCentroidsProblem,
  type RouteProblem,
  type Tensor,
} from "@moba-js/tensor";
import type { Argument, Piece } from "../src/commands.js";
import { type Context, inFloat32 } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import attendSource from "./attend.wgsl";
import attendBackwardSource from "./attend-backward-q.wgsl";
import attendMatrixSource from "./attend-matrix.wgsl";
import {
  attentionBackwardKv,
  attentionBackwardQ,
  attentionMerged,
  backwardRows,
  backwardTile,
  chooseVariant,
  forwardTile,
  groupOf,
  slotElements,
} from "./attention.js";
import centroidsSource from "./centroids.wgsl";
import flashSource from "./flash.wgsl";
import flashBackwardSource from "./flash-backward.wgsl";
import { buildLists, LIST_PARAMS, type Lists } from "./lists.js";
import listsSource from "./lists.wgsl";
import queryRowSource from "./query-row.wgsl";
import { type Mask, planRange, sequenceTable, type Wave, wholeWave } from "./range.js";
import rangeSource from "./range.wgsl";
import barrierSource from "./reduce-barrier.wgsl";
import subgroupSource from "./reduce-subgroup.wgsl";
import routeSource from "./route.wgsl";
import keptSource from "./route-kept.wgsl";
import spilledSource from "./route-spilled.wgsl";
import { chooseTile, rowQuads, tileConstants } from "./tile.js";
import tileSource from "./tile.wgsl";

const CENTROIDS = kernel({
  name: "centroids",
  source: listsSource + centroidsSource,
  bindings: { k: read("elements"), lists: read("u32"), out: write("f32") },
  params: { size: "u32", channels: "u32", sequences: "u32", blockSize: "u32" },
});

const routeKernel = (name: string, kept: string) =>
  kernel({
    name,
    source: tileSource + rangeSource + kept + routeSource,
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
    },
  });

const ROUTE = routeKernel("route", keptSource);
const ROUTE_SPILLED = routeKernel("route-spilled", spilledSource);

const attendKernel = (name: string, reduce: string) =>
  kernel({
    name,
    source: tileSource + reduce + flashSource + listsSource + queryRowSource + attendSource,
    bindings: {
      q: read("rows"),
      k: read("rows"),
      v: read("rows"),
      lists: read("u32"),
      slots: write("vec4<f32>"),
    },
    params: { ...LIST_PARAMS, d: "u32", scale: "f32" },
  });

const ATTEND = {
  barrier: attendKernel("attend", barrierSource),
  subgroup: attendKernel("attend-subgroup", subgroupSource),
};

const ATTEND_MATRIX = kernel({
  name: "attend-matrix",
  source: listsSource + queryRowSource + attendMatrixSource,
  bindings: {
    q: read("rows"),
    k: read("rows"),
    v: read("rows"),
    lists: read("u32"),
    slots: write("vec4<f32>"),
  },
  params: { ...LIST_PARAMS, d: "u32", scale: "f32" },
});

/** The tiles of {@link ATTEND_MATRIX}: queries of a tile, and keys of a block at most. */
const MATRIX_TILE = { BQ: 32, MOST_KEYS: 128 };
/** Bytes of workgroup memory that it takes. */
const matrixBytes = (channels: number): number =>
  2 * (MATRIX_TILE.BQ + MATRIX_TILE.MOST_KEYS) * (channels + 8) +
  MATRIX_TILE.BQ * (4 * (MATRIX_TILE.MOST_KEYS + 4) + 2 * (MATRIX_TILE.MOST_KEYS + 8) + 8);

/** Whether the tensor cores can do it. */
function suitsMatrices({ tier, workgroup }: Context, { dtype, headDim, routing }: AttendProblem): boolean {
  const channels = 4 * rowQuads(headDim);
  return (
    tier === "subgroup-matrix" &&
    dtype === "f16" &&
    headDim % 4 === 0 &&
    routing.blockSize <= MATRIX_TILE.MOST_KEYS &&
    matrixBytes(channels) <= workgroup.storage
  );
}

const ATTEND_BACKWARD = kernel({
  name: "attend-backward-q",
  source: tileSource + flashBackwardSource + listsSource + queryRowSource + attendBackwardSource,
  bindings: {
    q: read("rows"),
    k: read("rows"),
    v: read("rows"),
    dOut: read("rows"),
    stats: read("vec2<f32>"),
    lists: read("u32"),
    slots: write("vec4<f32>"),
  },
  params: { ...LIST_PARAMS, d: "u32", scale: "f32" },
});

/** The mean of each block's keys. */
export function centroids(context: Context, problem: CentroidsProblem, out: Tensor | Piece): void {
  const { k, cuSeqlens, blockSize } = problem;
  const channels = k.shape[1] * k.shape[2];
  const starts = cuBlocks(cuSeqlens, blockSize);
  const size = starts[starts.length - 1] * channels;
  context.commands.launch(CENTROIDS, {
    buffers: { k, lists: Uint32Array.from(sequenceTable({ cuSeqlens, cuSeqlensK: cuSeqlens }, starts)), out },
    params: { size, channels, sequences: cuSeqlens.length - 1, blockSize },
    groups: Math.ceil(size / 64),
  });
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

/** Choices of a query whose running list fits into workgroup memory. */
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
  const needs = { owned: 1, passing: 1, weights: 1 };
  const isKept = choices <= MOST_KEPT;
  const tile = chooseTile(workgroup, headDim, { ...needs, bytesPerRow: isKept ? 8 * KEPT : 0 });
  const group = heads / kvHeads;
  const { plan, firstItem, items } = planRange(problem, group, tile, wholeWave({ kvHeads, tokens }));
  const groups = items * kvHeads;
  const kept = commands.workspace(isKept ? 4 : groups * KEPT * tile.BQ * 2, "u32");
  commands.launch(isKept ? ROUTE : ROUTE_SPILLED, {
    buffers: { q, centroids: means, plan, kept, indices },
    params: {
      ...{ firstItem, kvHeads, group, d: headDim },
      ...{ mask: 0, causal: causal ? 1 : 0, span: blockSize, choices, slots },
    },
    constants: { ...tileConstants(tile, headDim), KEPT },
    vector: headDim % 4 === 0,
    groups,
  });
  kept.free();
}

/**
 * Cuts a problem so that its slots fit into the workspace: first by key heads, then by query tokens.
 * @throws DeviceError when a single query of one key head needs more than a buffer may hold
 */
function wavesOf(context: Context, problem: AttendProblem): Wave[] {
  const { kvHeads, tokens, headDim, routing } = problem;
  const { device } = context.commands;
  const rowBytes = 4 * slotElements(headDim) * routing.indices.shape[2] * groupOf(problem);
  const { maxBufferSize, maxStorageBufferBindingSize } = device.limits;
  const most = Math.min(context.maxWorkspaceBytes, maxBufferSize, maxStorageBufferBindingSize);
  const rows = Math.max(1, Math.floor(most / rowBytes));
  if (rowBytes > maxStorageBufferBindingSize) {
    throw new DeviceError("webgpu", `no memory for the ${rowBytes} bytes of one query's slots`);
  }
  const mostHeads = Math.max(1, Math.min(kvHeads, Math.floor(rows / tokens)));
  const headCount = Math.ceil(kvHeads / Math.ceil(kvHeads / mostHeads)); // waves of like sizes
  const waveTokens = Math.min(tokens, rows);
  const waves: Wave[] = [];
  for (let firstHead = 0; firstHead < kvHeads; firstHead += headCount) {
    for (let firstToken = 0; firstToken < tokens; firstToken += waveTokens) {
      waves.push({
        firstHead,
        headCount: Math.min(headCount, kvHeads - firstHead),
        firstToken,
        tokens: Math.min(waveTokens, tokens - firstToken),
      });
    }
  }
  return waves;
}

const slotsOfWave = (context: Context, problem: AttendProblem, wave: Wave) =>
  context.commands.workspace(
    wave.headCount *
      wave.tokens *
      groupOf(problem) *
      problem.routing.indices.shape[2] *
      slotElements(problem.headDim),
  );

/** What a causal query sees of its own block, in place; otherwise every block is in the lists. */
const ownMask = ({ routing: { causal, blockSize } }: AttendProblem): Mask =>
  causal ? { kind: "ownBlock", span: blockSize } : { kind: "nothing" };

const listParams = ({ layout }: Lists, problem: AttendProblem, wave: Wave) => ({
  ...layout,
  kvHeads: problem.kvHeads,
  firstHead: wave.firstHead,
  waveRows: wave.tokens * groupOf(problem),
  blockSize: problem.routing.blockSize,
  group: groupOf(problem),
  d: problem.headDim,
  scale: problem.scale,
});

/** Which kernel attends the lists, and its constants. */
function attendPlan(context: Context, problem: AttendProblem) {
  const { headDim } = problem;
  if (suitsMatrices(context, problem)) {
    const constants = { ...MATRIX_TILE, DQ: rowQuads(headDim), SUBGROUPS: true, MATRICES: true };
    return { definition: ATTEND_MATRIX, constants };
  }
  const tile = forwardTile(context, headDim);
  const { definition, SUBGROUPS } = chooseVariant(context, ATTEND);
  return { definition, constants: { ...tileConstants(tile, headDim), BQ: tile.BQ, SUBGROUPS } };
}

/** Attention over routed blocks by the slot plan: lists of queries block by block, slots, merge. */
export function attend(context: Context, problem: AttendProblem, { out, lse }: AttentionResult): void {
  if (out.size === 0) return;
  const { commands } = context;
  const { q, k, v, headDim, routing } = problem;
  const count = routing.indices.shape[2];
  const { definition, constants } = attendPlan(context, problem);
  inFloat32(context, out, (wide) => {
    for (const wave of wavesOf(context, problem)) {
      const slots = slotsOfWave(context, problem, wave);
      const lists = buildLists(context, problem, wave, constants.BQ, slots);
      commands.launch(definition, {
        buffers: { q, k, v, lists: lists.piece, slots },
        params: listParams(lists, problem, wave),
        constants,
        vector: headDim % 4 === 0,
        groups: lists.mostTiles,
      });
      lists.piece.free();
      attentionMerged(context, problem, ownMask(problem), wave, { piece: slots, count }, { out: wide, lse });
      slots.free();
    }
  });
}

/** The gradients of {@link attend}. */
export function attendBackward(
  context: Context,
  problem: AttendBackwardProblem,
  { dq, dk, dv }: AttentionGradients,
): void {
  const stats = backwardRows(context, problem);
  inFloat32(context, dq, (wideQ) =>
    inFloat32(context, dk, (wideK) =>
      inFloat32(context, dv, (wideV) => {
        if (dq.size > 0) backwardQueries(context, problem, stats, wideQ);
        if (dk.size > 0) backwardKeys(context, problem, stats, { dk: wideK, dv: wideV });
      }),
    ),
  );
  stats.free();
}

function backwardQueries(context: Context, problem: AttendBackwardProblem, stats: Piece, dq: Argument): void {
  const { commands } = context;
  const { q, k, v, dOut, headDim, routing } = problem;
  const tile = backwardTile(context, headDim);
  const count = routing.indices.shape[2];
  for (const wave of wavesOf(context, problem)) {
    const slots = slotsOfWave(context, problem, wave);
    const lists = buildLists(context, problem, wave, tile.BQ, slots);
    commands.launch(ATTEND_BACKWARD, {
      buffers: { q, k, v, dOut, stats, lists: lists.piece, slots },
      params: listParams(lists, problem, wave),
      constants: tileConstants(tile, headDim),
      vector: headDim % 4 === 0,
      groups: lists.mostTiles,
    });
    lists.piece.free();
    attentionBackwardQ(context, problem, ownMask(problem), wave, { piece: slots, count }, stats, dq);
    slots.free();
  }
}

function backwardKeys(
  context: Context,
  problem: AttendBackwardProblem,
  stats: Piece,
  outputs: { dk: Argument; dv: Argument },
): void {
  const tile = backwardTile(context, problem.headDim);
  const { blockSize } = problem.routing;
  const wave = wholeWave(problem);
  const lists = buildLists(context, problem, wave, tile.BQ);
  const { piece, layout } = lists;
  attentionBackwardKv(context, problem, ownMask(problem), wave, stats, { piece, layout, blockSize }, outputs);
  piece.free();
}
