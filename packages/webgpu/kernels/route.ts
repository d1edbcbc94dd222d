import {
  type CentroidsProblem,
  cuBlocks,
  type RouteCentroidsProblem,
  type RouteProblem,
  type Tensor,
} from "@moba-js/tensor";
import type { Piece } from "../src/commands.js";
import type { Context } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import centroidHalvesSource from "./centroid-halves.wgsl";
import centroidsSource from "./centroids.wgsl";
import listsSource from "./lists.wgsl";
import { matrixShape, ROWS, SIDE } from "./matrices.js";
import matricesSource from "./matrices.wgsl";
import nonFiniteSource from "./non-finite.wgsl";
import halvesSource from "./pack-halves.wgsl";
import { planRange, sequenceTable } from "./range.js";
import rangeSource from "./range.wgsl";
import routeSource from "./route.wgsl";
import keptSource from "./route-kept.wgsl";
import routeMatrixSource from "./route-matrix.wgsl";
import spilledSource from "./route-spilled.wgsl";
import { chooseTile, tileConstants } from "./tile.js";
import tileSource from "./tile.wgsl";
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

const CENTROID_HALVES = kernel({
  name: "centroid-halves",
  source: halvesSource + centroidHalvesSource,
  bindings: { centroids: read("vec4<f32>"), halves: write("vec4<u32>") },
  params: { count: "u32", d: "u32" },
});

const ROUTE_MATRIX = kernel({
  name: "route-matrix",
  source: rangeSource + keptSource + matricesSource + routeMatrixSource,
  bindings: {
    q: read("vec4<u32>"),
    halves: read("vec4<u32>"),
    plan: read("vec4<u32>"),
    indices: write("i32"),
  },
  params: {
    ...({ firstItem: "u32", kvHeads: "u32", group: "u32", d: "u32" } as const),
    ...({ mask: "u32", causal: "u32", span: "u32", choices: "u32", slots: "u32" } as const),
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
  const choice = { ...problem, centroids: means, cuCentroids };
  if (!chooseOnMatrices(context, choice, indices)) choose(context, choice, indices);
  means.free();
}

/** Routing by centroids that are there. */
export const routeCentroids = (
  context: Context,
  problem: RouteCentroidsProblem,
  indices: Tensor<"i32">,
): void => choose(context, { ...problem, kvHeads: problem.centroids.shape[1], causal: true }, indices);

/** A choice among centroids. */
interface Choice extends Omit<RouteCentroidsProblem, "centroids"> {
  readonly centroids: Tensor | Piece;
  readonly kvHeads: number;
  readonly causal: boolean;
}

/** Choices of a query whose running list fits into registers. */
const MOST_KEPT = 32;

/** Places of a running list: few different numbers, so that few pipelines are compiled. */
const keptPlaces = (choices: number): number => Math.max(8, 2 ** Math.ceil(Math.log2(Math.max(1, choices))));

function choose(context: Context, problem: Choice, indices: Tensor<"i32">): void {
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

/** Chooses on the matrix units, where the problem suits them: f16, everything bound at once, few choices. Returns whether it did. */
function chooseOnMatrices(context: Context, problem: Choice, indices: Tensor<"i32">): boolean {
  const { commands } = context;
  const { q, centroids: means, kvHeads, blockSize, topK, slots, causal, cuCentroids } = problem;
  const [tokens, heads, headDim] = q.shape;
  const choices = causal ? Math.min(topK - 1, slots) : slots;
  const blocks = cuCentroids[cuCentroids.length - 1];
  const matrices = matrixShape(context, q.dtype, headDim, (eights) => SIDE * (2 * eights + 1));
  const fits =
    mostRows(context, 4 * kvHeads * headDim) >= blocks &&
    mostRows(context, 4 * heads * Math.max(headDim, slots)) >= tokens;
  if (!matrices || !fits || choices > MOST_KEPT || indices.size === 0) return false;
  const { SUBGROUP_COUNT, STEPS, PAIRS } = matrices;
  const count = (blocks * kvHeads * headDim) / 8;
  const halves = commands.workspace(Math.max(8, 8 * count));
  commands.launch(CENTROID_HALVES, {
    buffers: { centroids: means, halves },
    params: { count, d: headDim },
    groups: Math.ceil(count / 64),
  });
  const group = heads / kvHeads;
  const tile = { BQ: ROWS * SUBGROUP_COUNT, BK: SIDE, RQ: 1 };
  const { plan, firstItem, items } = planRange(problem, group, tile, { firstToken: 0, tokens });
  commands.launch(ROUTE_MATRIX, {
    buffers: { q, halves, plan, indices },
    params: {
      ...{ firstItem, kvHeads, group, d: headDim },
      ...{ mask: 0, causal: causal ? 1 : 0, span: blockSize, choices, slots },
    },
    constants: {
      ...{ MATRICES: true, SUBGROUPS: true, SUBGROUP_COUNT, STEPS, PAIRS, KEPT: Math.max(1, choices) },
      FETCHED: Math.ceil((2 * STEPS) / SUBGROUP_COUNT),
    },
    groups: items * kvHeads,
  });
  halves.free();
  return true;
}
