import {
  type AttendBackwardProblem,
  type AttentionBackwardProblem,
  type AttentionGradients,
  cuBlocks,
  type Tensor,
} from "@moba-js/tensor";
import type { Argument, Piece } from "../src/commands.js";
import { type Context, inFloat32 } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import { groupOf, slotElements } from "./attention.js";
import backwardSource from "./attention-backward.wgsl";
import keysSource from "./attention-backward-keys.wgsl";
import queriesSource from "./attention-backward-queries.wgsl";
import backwardSubgroupSource from "./attention-backward-subgroup.wgsl";
import itemsSource from "./backward-items.wgsl";
import rowsSource from "./backward-rows.wgsl";
import { buildLists, LIST_PARAMS, listHeads } from "./lists.js";
import listsSource from "./lists.wgsl";
import markSlotSource from "./mark-slot.wgsl";
import nonFiniteSource from "./non-finite.wgsl";
import piecesSource from "./pieces.wgsl";
import { type Mask, maskNumber, maskSpan, ownMask, rowsThatSee, sequenceTable, type Wave } from "./range.js";
import { chooseTile, rowQuads, tileConstants } from "./tile.js";
import tileSource from "./tile.wgsl";
import unmarkSource from "./unmark-slots.wgsl";
import { mostWorkspace, slotWaves, slotWorkspace } from "./waves.js";
import { blockWindows, mostRows, type Range, rangesOf, tokenWindow } from "./windows.js";

const ROWS = kernel({
  name: "backward-rows",
  source: rowsSource,
  bindings: { dOut: read("rows"), out: read("rows"), lse: read("f32"), stats: write("vec2<f32>") },
  params: { firstRow: "u32", endRow: "u32", d: "u32" },
});

const PIECE_PARAMS = {
  ...LIST_PARAMS,
  headCount: "u32",
  firstList: "u32",
  endList: "u32",
  firstItem: "u32",
  pieceTiles: "u32",
  d: "u32",
} as const;

const backwardKernel = (name: string, source: string) =>
  kernel({
    name,
    source: nonFiniteSource + listsSource + piecesSource + itemsSource + source,
    bindings: {
      q: read("rows"),
      k: read("rows"),
      v: read("rows"),
      dOut: read("rows"),
      stats: read("vec2<f32>"),
      lists: read("u32"),
      slots: write("vec4<f32>"),
      parts: write("vec4<f32>"),
    },
    params: { ...PIECE_PARAMS, mask: "u32", span: "u32", scale: "f32" },
  });

const BACKWARD = backwardKernel("attention-backward", tileSource + backwardSource);
const BACKWARD_SUBGROUP = backwardKernel("attention-backward-subgroup", backwardSubgroupSource);

const KEYS = kernel({
  name: "attention-backward-keys",
  source: listsSource + piecesSource + keysSource,
  bindings: { parts: read("vec4<f32>"), lists: read("u32"), dk: write("rows"), dv: write("rows") },
  params: { ...PIECE_PARAMS, size: "u32", accumulate: "u32" },
});

const UNMARK = kernel({
  name: "unmark-slots",
  source: markSlotSource + unmarkSource,
  bindings: { slots: write("vec4<f32>") },
  params: { size: "u32", places: "u32" },
});

const QUERIES = kernel({
  name: "attention-backward-queries",
  source: queriesSource,
  bindings: { slots: read("vec4<f32>"), dq: write("rows") },
  params: {
    ...({ size: "u32", kvHeads: "u32", firstHead: "u32", firstToken: "u32", waveRows: "u32" } as const),
    ...({ group: "u32", places: "u32", d: "u32", scale: "f32" } as const),
  },
});

/** A kernel for the gradients by blocks of keys, and what it works at at a time. */
interface BackwardShape {
  readonly definition: typeof BACKWARD;
  readonly constants: Readonly<Record<string, number | boolean>>;
  /** Keys of a block. */
  readonly keys: number;
  /** Rows of queries that pass by. */
  readonly rows: number;
}

/** Threads of a workgroup of `attention-backward-subgroup.wgsl`, at most: their registers fill a multiprocessor of NVIDIA's. */
const MOST_THREADS = 256;
/** Threads of a subgroup that it takes as one, at most. */
const MOST_SUBGROUP = 32;

/** Room for the note of what is not finite. */
const FLAG_BYTES = 16;

const powerOfTwo = (atLeast: number): number => 2 ** Math.ceil(Math.log2(atLeast));

/** The kernel in registers, for blocks of so many keys, if subgroups are wide enough and workgroup memory has room. */
function subgroupShape(
  { workgroup, subgroupSize }: Context,
  headDim: number,
  blockSize: number,
): BackwardShape | undefined {
  const DQ = rowQuads(headDim);
  const LANES = powerOfTwo(DQ / 2);
  const SUBGROUP = Math.min(MOST_SUBGROUP, subgroupSize);
  if (LANES > SUBGROUP) return undefined;
  const storageOf = (threads: number) =>
    (16 * threads * threads) / SUBGROUP + 32 * threads + (4 * threads) / LANES + FLAG_BYTES;
  const fits = (threads: number) =>
    threads <= workgroup.invocations && storageOf(threads) <= workgroup.storage;
  const least = Math.max(SUBGROUP, 4 * LANES); // one subgroup, and room for two rows
  let THREADS = Math.max(least, Math.min(MOST_THREADS, powerOfTwo((blockSize * LANES) / 4)));
  while (THREADS > least && !fits(THREADS)) THREADS /= 2;
  if (!fits(THREADS)) return undefined;
  const counts = {
    SUBGROUP_COUNT: THREADS / SUBGROUP,
    HALF_LEVELS: Math.log2(LANES) - 1,
    GROUP_LEVELS: Math.max(0, Math.log2(SUBGROUP / LANES) - 2),
  };
  const [keys, rows] = [(4 * THREADS) / LANES, THREADS / (2 * LANES)];
  return {
    definition: BACKWARD_SUBGROUP,
    constants: { DQ, THREADS, LANES, SUBGROUP, SUBGROUPS: true, ...counts },
    keys,
    rows,
  };
}

/** In registers where that can be, else in tiles. */
function backwardShape(context: Context, headDim: number, blockSize: number): BackwardShape {
  const shape = subgroupShape(context, headDim, blockSize);
  if (shape) return shape;
  const tile = chooseTile(context.workgroup, headDim, { owned: 2, passing: 2, weights: 2, bytesPerRow: 16 });
  return {
    definition: BACKWARD,
    constants: { ...tileConstants(tile, headDim), SUBGROUPS: false },
    keys: tile.BQ,
    rows: tile.BK,
  };
}

/** The gradients, float32. */
interface Outputs {
  readonly dq: Tensor | Piece;
  readonly dk: Tensor | Piece;
  readonly dv: Tensor | Piece;
}

/** Runs `compute` with what it needs of each query, (base-2 log-sum-exp, `D = dOut·out`), `[T, H]`, and float32 outputs. */
function withRows(
  context: Context,
  problem: AttentionBackwardProblem,
  { dq, dk, dv }: AttentionGradients,
  compute: (stats: Piece, outputs: Outputs) => void,
): void {
  const { commands } = context;
  const { dOut, out, lse, tokens, heads, headDim, keyTokens } = problem;
  if (tokens === 0 || keyTokens === 0) {
    for (const gradient of [dq, dk, dv]) commands.clear(gradient);
    return;
  }
  const stats = commands.workspace(2 * tokens * heads);
  const most = mostRows(context, 4 * heads * headDim);
  for (const rows of rangesOf({ first: 0, end: tokens }, most)) {
    commands.launch(ROWS, {
      buffers: {
        dOut: tokenWindow(dOut, heads * headDim, rows),
        out: tokenWindow(out, heads * headDim, rows),
        lse: tokenWindow(lse, heads, rows),
        stats: tokenWindow(stats, 2 * heads, rows),
      },
      params: { firstRow: rows.first * heads, endRow: rows.end * heads, d: headDim },
      vector: headDim % 4 === 0,
      groups: Math.ceil(((rows.end - rows.first) * heads) / 64),
    });
  }
  inFloat32(context, dq, (wideQ) =>
    inFloat32(context, dk, (wideK) =>
      inFloat32(context, dv, (wideV) => compute(stats, { dq: wideQ, dk: wideK, dv: wideV })),
    ),
  );
  stats.free();
}

/** What {@link backwardWindow} launches. */
interface WindowLaunch {
  readonly shape: BackwardShape;
  readonly wave: Wave;
  readonly mask: Mask;
  readonly lists: Argument;
  readonly slots: Piece;
  /** Slots of each row. */
  readonly places: number;
  readonly blockSize: number;
  readonly tokens: Range;
  /** Parameters of `lists.wgsl` and `pieces.wgsl`, but for those of the wave. */
  readonly layout: Readonly<
    Record<Exclude<keyof typeof PIECE_PARAMS, keyof ReturnType<typeof waveParams>>, number>
  >;
  readonly constants: Readonly<Record<"LISTED" | "OWN", boolean>>;
  /** (block, key head) pairs; pieces of rows, at most; workgroups. */
  readonly listsOfWindow: number;
  readonly pieces: number;
  readonly groups: number;
}

const waveParams = (problem: AttentionBackwardProblem, wave: Wave, places: number, blockSize: number) => ({
  kvHeads: problem.kvHeads,
  firstHead: wave.firstHead,
  headCount: wave.headCount,
  firstToken: wave.firstToken,
  waveRows: wave.tokens * groupOf(problem),
  group: groupOf(problem),
  d: problem.headDim,
  places,
  blockSize,
});

/** Bytes of a piece's part: `dk` and `dv` of a block. */
const partBytes = (blockSize: number, headDim: number): number => blockSize * 2 * 16 * rowQuads(headDim);

/** The gradients of a window of blocks, over the queries of a wave: into the slots, and summed up in `dk` and `dv`. */
function backwardWindow(
  context: Context,
  problem: AttentionBackwardProblem,
  stats: Piece,
  launch: WindowLaunch,
  { dk, dv }: Outputs,
): void {
  const { commands } = context;
  const { q, k, v, dOut, heads, kvHeads, headDim, scale } = problem;
  const { shape, wave, mask, lists, slots, tokens, layout, blockSize, places } = launch;
  const rows = { first: wave.firstToken, end: wave.firstToken + wave.tokens };
  const keyRows = (whole: Tensor | Piece) => tokenWindow(whole, kvHeads * headDim, tokens);
  const parts = commands.workspace((launch.pieces * partBytes(blockSize, headDim)) / 4);
  const params = { ...layout, ...waveParams(problem, wave, places, blockSize) };
  const vector = headDim % 4 === 0;
  commands.launch(shape.definition, {
    buffers: {
      ...{ q: tokenWindow(q, heads * headDim, rows), dOut: tokenWindow(dOut, heads * headDim, rows) },
      ...{ k: keyRows(k), v: keyRows(v), stats: tokenWindow(stats, 2 * heads, rows), lists, slots, parts },
    },
    params: { ...params, mask: maskNumber(mask), span: maskSpan(mask), scale },
    constants: { ...shape.constants, LIST_TILE: shape.rows, ...launch.constants },
    vector,
    groups: launch.groups,
  });
  const size = launch.listsOfWindow * blockSize * rowQuads(headDim);
  commands.launch(KEYS, {
    buffers: { parts, lists, dk: keyRows(dk), dv: keyRows(dv) },
    params: { ...params, size, accumulate: wave.firstToken > 0 ? 1 : 0 },
    constants: { DQ: rowQuads(headDim), LISTED: launch.constants.LISTED },
    vector,
    groups: Math.ceil(size / 64),
  });
  parts.free();
}

/** Marks the slots of a wave's rows as unused. */
function unmarkSlots(
  { commands }: Context,
  problem: AttentionBackwardProblem,
  wave: Wave,
  slots: Piece,
  places: number,
): void {
  const size = wave.headCount * wave.tokens * groupOf(problem) * places;
  commands.launch(UNMARK, {
    buffers: { slots },
    params: { size, places },
    constants: { DQ: rowQuads(problem.headDim) },
    groups: Math.ceil(size / 64),
  });
}

/** `dq` of the rows of a wave: the sums of their slots. */
function sumSlots(
  { commands }: Context,
  problem: AttentionBackwardProblem,
  wave: Wave,
  slots: Piece,
  places: number,
  dq: Tensor | Piece,
): void {
  const { heads, kvHeads, headDim, scale } = problem;
  const { firstHead, headCount, firstToken, tokens } = wave;
  const group = groupOf(problem);
  const waveRows = tokens * group;
  const size = headCount * waveRows * rowQuads(headDim);
  commands.launch(QUERIES, {
    buffers: {
      slots,
      dq: tokenWindow(dq, heads * headDim, { first: firstToken, end: firstToken + tokens }),
    },
    params: { size, kvHeads, firstHead, firstToken, waveRows, group, places, d: headDim, scale },
    constants: { DQ: rowQuads(headDim) },
    vector: headDim % 4 === 0,
    groups: Math.ceil(size / 64),
  });
}

/** Keys that can be bound, as inputs and as float32 gradients. */
const mostKeys = (context: Context, { kvHeads, headDim }: AttentionBackwardProblem): number =>
  mostRows(context, 4 * kvHeads * headDim);

/** Blocks of keys of a sequence; fewest and most. */
const FEW_BLOCKS = 16;
const MANY_BLOCKS = 64;
/** Key heads that fill a device with few blocks each. */
const MANY_HEADS = 8;

/**
 * How many blocks the keys of a sequence are cut into, and the rows that see a block into pieces, at most: more of them where few heads
 * have to fill the device, since there are no more or the workspace has no room for more.
 */
function gridOf(context: Context, { tokens, heads, kvHeads, headDim }: AttentionBackwardProblem) {
  const slotBytes = (4 * slotElements(headDim) * tokens * heads) / kvHeads; // of one head and block
  const fit = Math.floor(mostWorkspace(context) / slotBytes);
  const isFilled = Math.min(kvHeads, Math.floor(fit / FEW_BLOCKS)) >= MANY_HEADS;
  const blocks = isFilled ? FEW_BLOCKS : Math.max(FEW_BLOCKS, Math.min(MANY_BLOCKS, fit));
  return { blocks, pieces: Math.ceil((3 * blocks) / 4) };
}

/** A block of keys, and a piece of the rows that see it. */
interface BackwardItem {
  readonly block: number;
  readonly rows: Range;
}

/** The items of a wave, block by block, and where each block's begin. */
function planItems(
  { cuSeqlens, cuSeqlensK, heads, kvHeads }: AttentionBackwardProblem,
  mask: Mask,
  blockSize: number,
  wave: Wave,
  { rows: step }: BackwardShape,
  mostPieces: number,
): { items: BackwardItem[]; starts: number[] } {
  const group = heads / kvHeads;
  const cu = cuBlocks(cuSeqlensK, blockSize);
  const items: BackwardItem[] = [];
  const starts: number[] = [];
  for (let s = 0; s + 1 < cuSeqlens.length; s++) {
    const queries = cuSeqlens[s + 1] - cuSeqlens[s];
    const keys = cuSeqlensK[s + 1] - cuSeqlensK[s];
    const first = group * Math.max(0, wave.firstToken - cuSeqlens[s]);
    const end = group * Math.min(queries, wave.firstToken + wave.tokens - cuSeqlens[s]);
    const pieceRows = Math.max(2, Math.ceil((end - first) / mostPieces / step)) * step;
    for (let block = cu[s]; block < cu[s + 1]; block++) {
      starts.push(items.length);
      const key = (block - cu[s]) * blockSize;
      const seen = rowsThatSee(mask, { queries, keys, group }, key, Math.min(key + blockSize, keys));
      const rows = { first: Math.max(first, seen.first), end: Math.min(end, seen.end) };
      if (rows.end > rows.first)
        items.push(...rangesOf(rows, pieceRows).map((piece) => ({ block, rows: piece })));
    }
  }
  starts.push(items.length);
  return { items, starts };
}

/** The gradients of attention under a mask. */
export function attentionBackward(
  context: Context,
  problem: AttentionBackwardProblem,
  mask: Mask,
  gradients: AttentionGradients,
): void {
  const { cuSeqlensK, headDim } = problem;
  const shape = backwardShape(context, headDim, Number.POSITIVE_INFINITY);
  const longest = Math.max(...Array.from(cuSeqlensK.subarray(1), (end, s) => end - cuSeqlensK[s]));
  const reach = mask.kind === "window" ? Math.min(longest, mask.span) : longest;
  const grid = gridOf(context, problem);
  const room = Math.floor(mostWorkspace(context) / (grid.pieces * partBytes(1, headDim)));
  const wanted = Math.max(2, Math.ceil(reach / grid.blocks / shape.keys)) * shape.keys;
  const blockSize = Math.max(1, Math.min(wanted, mostKeys(context, problem), room));
  // The blocks that a row sees come one after the other, so their slots can take turns.
  const places = Math.min(Math.ceil(longest / blockSize), Math.ceil(reach / blockSize) + 1);
  const blocksAndHeads = Math.max(1, Math.floor(room / blockSize));
  const table = sequenceTable(problem, cuBlocks(cuSeqlensK, blockSize));
  withRows(context, problem, gradients, (stats, outputs) => {
    const waves = slotWaves(context, problem, places, blocksAndHeads);
    for (const wave of waves) {
      const slots = slotWorkspace(context, problem, waves, places);
      unmarkSlots(context, problem, wave, slots, places);
      const { items, starts } = planItems(problem, mask, blockSize, wave, shape, grid.pieces);
      const itemNumbers = items.flatMap(({ block, rows }) => [block, rows.first, rows.end]);
      const lists = Uint32Array.from([...table, ...starts, ...itemNumbers]);
      const layout = {
        ...{
          sequences: cuSeqlensK.length - 1,
          blocks: starts.length - 1,
          slots: 1,
          listCount: 0,
          countsAt: 0,
        },
        ...{ tilesAt: 0, startsAt: table.length, entriesAt: table.length + starts.length },
        ...{ firstList: 0, endList: 0, pieceTiles: 1 },
      };
      const most = {
        blocks: Math.floor(blocksAndHeads / wave.headCount),
        tokens: mostKeys(context, problem),
      };
      for (const { blocks, tokens } of blockWindows(cuSeqlensK, blockSize, most)) {
        const firstItem = starts[blocks.first];
        const pieces = (starts[blocks.end] - firstItem) * wave.headCount;
        const launch = { shape, wave, mask, lists, slots, places, blockSize, tokens, pieces, groups: pieces };
        const window = { ...layout, firstItem, firstBlock: blocks.first, endBlock: blocks.end };
        const constants = { LISTED: false, OWN: false };
        const listsOfWindow = (blocks.end - blocks.first) * wave.headCount;
        backwardWindow(
          context,
          problem,
          stats,
          { ...launch, layout: window, constants, listsOfWindow },
          outputs,
        );
      }
      sumSlots(context, problem, wave, slots, places, outputs.dq);
      slots.free();
    }
  });
}

/** Entries of a list that one piece has at least. */
const LEAST_PIECE = 256;

/** The gradients of attention over routed blocks. */
export function attendBackward(
  context: Context,
  problem: AttendBackwardProblem,
  gradients: AttentionGradients,
): void {
  const { headDim, routing, kvHeads } = problem;
  const { cuSeqlensK, blockSize, causal } = routing;
  const shape = backwardShape(context, headDim, blockSize);
  const slotCount = routing.indices.shape[2];
  const places = slotCount + (causal ? 1 : 0); // the last one is the own block's
  const mask = ownMask(routing);
  const blocks = cuBlocks(cuSeqlensK, blockSize).at(-1) as number;
  const room = Math.max(4, Math.floor(mostWorkspace(context) / partBytes(blockSize, headDim)));
  const tokens = mostKeys(context, problem);
  // Pieces of long lists take half the room of first pieces at most. Lists of several windows are those of one head.
  const headLimit = cuSeqlensK[cuSeqlensK.length - 1] > tokens ? 1 : Math.floor((room - 1) / (2 * blocks));
  withRows(context, problem, gradients, (stats, outputs) => {
    const limit = Math.min(kvHeads, headLimit, listHeads(context, blocks, shape.rows));
    const waves = slotWaves(context, problem, places, Math.max(1, limit));
    for (const wave of waves) {
      const slots = slotWorkspace(context, problem, waves, places);
      const {
        piece: lists,
        layout,
        mostTiles,
      } = buildLists(context, problem, wave, shape.rows, {
        marks: { slots, places },
        leastTiles: causal ? 1 : 0,
      });
      // Popular blocks are cut into pieces twice as long as a list is on average, or longer if there is no room for so many.
      const pieceTiles = Math.ceil(
        Math.max(LEAST_PIECE / shape.rows, (2 * mostTiles) / layout.listCount, (2 * mostTiles) / (room - 1)),
      );
      const morePieces = Math.floor(mostTiles / pieceTiles) + 1;
      const most = { blocks: Math.max(1, Math.floor(room - morePieces) / wave.headCount), tokens };
      for (const window of blockWindows(cuSeqlensK, blockSize, most)) {
        const { first, end } = window.blocks;
        // All lists, or those of one head's blocks.
        const listsOfWindow = (end - first) * wave.headCount;
        const range = { firstBlock: first, endBlock: end, firstList: first, endList: first + listsOfWindow };
        backwardWindow(
          context,
          problem,
          stats,
          {
            ...{ shape, wave, mask, lists, slots, places, blockSize, tokens: window.tokens, listsOfWindow },
            layout: { ...layout, ...range, pieceTiles, firstItem: 0 },
            constants: { LISTED: true, OWN: causal },
            pieces: listsOfWindow + morePieces,
            groups: mostTiles,
          },
          outputs,
        );
      }
      lists.free();
      sumSlots(context, problem, wave, slots, places, outputs.dq);
      slots.free();
    }
  });
}
