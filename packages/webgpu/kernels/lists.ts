import { type AttendProblem, cuBlocks } from "@moba-js/tensor";
import type { Piece } from "../src/commands.js";
import type { Context } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import { groupOf, slotElements } from "./attention.js";
import chosenSource from "./chosen-block.wgsl";
import listsSource from "./lists.wgsl";
import countSource from "./lists-count.wgsl";
import scanSource from "./lists-scan.wgsl";
import scatterSource from "./lists-scatter.wgsl";
import startSource from "./lists-start.wgsl";
import tilesSource from "./lists-tiles.wgsl";
import { sequenceTable, type Wave } from "./range.js";
import { tokenWindow } from "./windows.js";

/** The parameters of every kernel that reads lists. */
export const LIST_PARAMS = {
  kvHeads: "u32",
  firstHead: "u32",
  firstToken: "u32",
  waveRows: "u32",
  sequences: "u32",
  blocks: "u32",
  blockSize: "u32",
  firstBlock: "u32",
  endBlock: "u32",
  group: "u32",
  slots: "u32",
  places: "u32",
  listCount: "u32",
  startsAt: "u32",
  countsAt: "u32",
  tilesAt: "u32",
  entriesAt: "u32",
} as const;

const BUILD_PARAMS = {
  ...LIST_PARAMS,
  ...({ causal: "u32", chunks: "u32", chunkEntries: "u32", leastTiles: "u32" } as const),
} as const;

const COUNT = kernel({
  name: "lists-count",
  source: listsSource + chosenSource + countSource,
  bindings: { routing: read("i32"), lists: read("u32"), counts: write("atomic<u32>") },
  params: BUILD_PARAMS,
});

const SCAN = kernel({
  name: "lists-scan",
  source: scanSource,
  bindings: { counts: write("u32"), lists: write("u32") },
  params: BUILD_PARAMS,
});

const START = kernel({
  name: "lists-start",
  source: startSource,
  bindings: { lists: write("u32") },
  params: BUILD_PARAMS,
});

const TILES = kernel({
  name: "lists-tiles",
  source: tilesSource,
  bindings: { lists: write("u32") },
  params: BUILD_PARAMS,
});

const SCATTER = kernel({
  name: "lists-scatter",
  source: listsSource + chosenSource + scatterSource,
  bindings: { routing: read("i32"), counts: write("u32"), lists: write("u32"), slots: write("vec4<f32>") },
  params: BUILD_PARAMS,
});

/** Entries that a workgroup ranks at a time. */
const RANKED = 256;
/** Chunks of rows, of all heads, that are wanted at most: each is a workgroup. */
const MOST_CHUNKS = 2048;
/** Elements of the table of counts, at most. */
const MOST_COUNTS = 1 << 24;

/** Where kernels find what is in the lists: see `lists.wgsl`. */
export interface ListLayout {
  readonly sequences: number;
  readonly blocks: number;
  readonly slots: number;
  readonly listCount: number;
  readonly startsAt: number;
  readonly countsAt: number;
  readonly tilesAt: number;
  readonly entriesAt: number;
}

/** Key heads whose lists can be bound at once, so far as the number of blocks decides it. */
export const listHeads = ({ commands }: Context, blocks: number, listTile: number): number =>
  Math.floor(commands.bindingLimit / 2 / (4 * blocks * (listTile + 3)));

/** A routing turned round. */
export interface Lists {
  readonly piece: Piece & { free(): void };
  readonly layout: ListLayout;
  /** Tiles of all lists together, at most. */
  readonly mostTiles: number;
}

/** Options of {@link buildLists}. */
interface ListOptions {
  /** The slots of the wave, `places` for each row: those that no list fills are marked as unused. */
  readonly slots: { readonly piece: Piece; readonly places: number };
  /** Tiles that a list takes at least. */
  readonly leastTiles: 0 | 1;
  /** Whether causal queries are in the lists of their own blocks too. Default false. */
  readonly withOwn?: boolean;
}

/**
 * Turns the routing of a wave round: count, scan, stable scatter. No part of it depends on an order of threads.
 * @param listTile entries of a tile: a list takes whole tiles
 */
export function buildLists(
  { commands }: Context,
  problem: AttendProblem,
  wave: Wave,
  listTile: number,
  { slots, leastTiles, withOwn = false }: ListOptions,
): Lists {
  const { routing, kvHeads, headDim } = problem;
  const { blockSize, causal, cuSeqlensK } = routing;
  const { firstHead, headCount, firstToken, tokens } = wave;
  const slotCount = routing.indices.shape[2];
  const starts = cuBlocks(cuSeqlensK, blockSize);
  const table = sequenceTable(problem, starts);
  const blocks = starts[starts.length - 1];
  const listCount = headCount * blocks;
  const entries = tokens * groupOf(problem) * slotCount;
  const mostTiles = Math.floor((headCount * entries) / listTile) + listCount;
  const startsAt = table.length;
  const countsAt = startsAt + listCount + 1;
  const tilesAt = countsAt + listCount;
  const entriesAt = tilesAt + mostTiles;

  const mostCounts = Math.min(MOST_COUNTS, commands.bindingLimit / 8);
  const wanted = Math.max(
    1,
    Math.floor(Math.min(MOST_CHUNKS / headCount, mostCounts / Math.max(1, listCount))),
  );
  const chunkEntries = Math.ceil(entries / wanted / RANKED) * RANKED || RANKED;
  const chunks = Math.ceil(entries / chunkEntries);

  const piece = commands.workspace(entriesAt + mostTiles * listTile, "u32");
  commands.clear(piece);
  commands.upload(piece.storage, Uint32Array.from(table));
  const counts = commands.workspace(Math.max(1, headCount * chunks * blocks), "u32");
  commands.clear(counts);
  const layout = {
    ...{ sequences: cuSeqlensK.length - 1, blocks, slots: slotCount, listCount },
    ...{ startsAt, countsAt, tilesAt, entriesAt },
  };
  const params = {
    ...{ ...layout, kvHeads, firstHead, firstToken, waveRows: tokens * groupOf(problem), blockSize },
    ...{ group: groupOf(problem), places: slots.places, firstBlock: 0, endBlock: blocks },
    ...{ causal: causal ? 1 : 0, chunks, chunkEntries, leastTiles },
  };
  const constants = { LIST_TILE: listTile, DQ: slotElements(headDim) / 4 - 1, WITH_OWN: withOwn };
  const common = { params, constants };
  const rows = { first: firstToken, end: firstToken + tokens };
  const indices = tokenWindow(routing.indices, problem.heads * slotCount, rows);
  const perList = Math.ceil(listCount / 64);
  commands.launch(COUNT, {
    ...common,
    buffers: { routing: indices, lists: piece, counts },
    groups: headCount * chunks,
  });
  commands.launch(SCAN, { ...common, buffers: { counts, lists: piece }, groups: perList });
  commands.launch(START, { ...common, buffers: { lists: piece }, groups: 1 });
  commands.launch(TILES, { ...common, buffers: { lists: piece }, groups: perList });
  commands.launch(SCATTER, {
    ...common,
    buffers: { routing: indices, counts, lists: piece, slots: slots.piece },
    groups: headCount * chunks,
  });
  counts.free();
  return { piece, layout, mostTiles };
}
