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
import markLseSource from "./mark-lse.wgsl";
import markSlotSource from "./mark-slot.wgsl";
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
  bindings: { routing: read("i32"), lists: read("u32"), counts: write("u32") },
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

const LISTED = { routing: read("i32"), counts: write("u32"), lists: write("u32") } as const;

const SCATTER = kernel({
  name: "lists-scatter",
  source: listsSource + chosenSource + markSlotSource + scatterSource,
  bindings: { ...LISTED, slots: write("vec4<f32>") },
  params: BUILD_PARAMS,
});

const SCATTER_LSE = kernel({
  name: "lists-scatter-lse",
  source: listsSource + chosenSource + markLseSource + scatterSource,
  bindings: { ...LISTED, slotLse: write("f32") },
  params: BUILD_PARAMS,
});

/** Threads of a workgroup: as in `lists-scatter.wgsl`. */
const THREADS = 256;
/** Entries that one of them ranks side by side, if rows are not longer than that. */
const MOST_EACH = 8;
/** Blocks that workgroup memory, 16 KB everywhere, has counts of. */
const MOST_TABLE = 2048;
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

/** The bits of the log-sum-exp of an unused slot: below every other one. */
export const UNUSED = 0xff7fffff;

/** Where slots that no list fills are marked as unused: in themselves, `places` for each row, or in log-sum-exps of their own. */
export type SlotMarks = { readonly slots: Piece; readonly places: number } | { readonly slotLse: Piece };

/** Options of {@link buildLists}. */
interface ListOptions {
  readonly marks: SlotMarks;
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
  { marks, leastTiles, withOwn = false }: ListOptions,
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

  const TURN_ROWS = Math.max(1, Math.min(32, Math.floor((MOST_EACH * THREADS) / slotCount)));
  const ranked = TURN_ROWS * slotCount;
  const mostCounts = Math.min(MOST_COUNTS, commands.bindingLimit / 8);
  const wanted = Math.max(
    1,
    Math.floor(Math.min(MOST_CHUNKS / headCount, mostCounts / Math.max(1, listCount))),
  );
  const chunkEntries = Math.ceil(entries / wanted / ranked) * ranked || ranked;
  const chunks = Math.ceil(entries / chunkEntries);

  const lists = commands.workspace(entriesAt + mostTiles * listTile, "u32");
  commands.upload(lists.storage, Uint32Array.from(table));
  const counts = commands.workspace(Math.max(1, headCount * chunks * blocks), "u32");
  const layout = {
    ...{ sequences: cuSeqlensK.length - 1, blocks, slots: slotCount, listCount },
    ...{ startsAt, countsAt, tilesAt, entriesAt },
  };
  const places = "slots" in marks ? marks.places : slotCount;
  const params = {
    ...{ ...layout, kvHeads, firstHead, firstToken, waveRows: tokens * groupOf(problem), blockSize },
    ...{ group: groupOf(problem), places, firstBlock: 0, endBlock: blocks },
    ...{ causal: causal ? 1 : 0, chunks, chunkEntries, leastTiles },
  };
  const indices = tokenWindow(routing.indices, problem.heads * slotCount, {
    first: firstToken,
    end: firstToken + tokens,
  });
  // Few different tables, so that few pipelines are compiled.
  const TABLE = Math.min(MOST_TABLE, Math.max(THREADS, 2 ** Math.ceil(Math.log2(Math.max(1, blocks)))));
  const chosen = { WITH_OWN: withOwn, SLOTS: slotCount, GROUP: groupOf(problem), TABLE };
  const LIST_TILE = listTile;
  const perChunk = headCount * chunks;
  const perList = Math.ceil(listCount / 64);
  const buffers = { routing: indices, counts, lists };
  commands.launch(COUNT, { params, constants: chosen, buffers, groups: perChunk });
  commands.launch(SCAN, { params, constants: { LIST_TILE }, buffers: { counts, lists }, groups: perList });
  commands.launch(START, { params, buffers: { lists }, groups: 1 });
  commands.launch(TILES, {
    params,
    constants: { LIST_TILE },
    buffers: { lists },
    groups: Math.ceil(mostTiles / 64),
  });
  const OWN_PLACE = places > slotCount;
  const constants = { ...chosen, LIST_TILE, TURN_ROWS, EACH: Math.ceil(ranked / THREADS), OWN_PLACE };
  const scatter = { params, groups: perChunk };
  if ("slots" in marks) {
    commands.launch(SCATTER, {
      ...scatter,
      constants: { ...constants, DQ: slotElements(headDim) / 4 - 1 },
      buffers: { ...buffers, slots: marks.slots },
    });
  } else {
    commands.launch(SCATTER_LSE, {
      ...scatter,
      constants: { ...constants, UNUSED },
      buffers: { ...buffers, slotLse: marks.slotLse },
    });
  }
  counts.free();
  return { piece: lists, layout, mostTiles };
}
