import { type AttendProblem, type AttentionResult, cuBlocks } from "@moba-js/tensor";
import type { Argument, Piece } from "../src/commands.js";
import { type Context, inFloat32 } from "../src/context.js";
import { type Kernel, kernel, read, write } from "../src/kernel.js";
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
import flashSource from "./flash.wgsl";
import { buildLists, LIST_PARAMS, listHeads, type SlotMarks, UNUSED } from "./lists.js";
import listsSource from "./lists.wgsl";
import { type MatrixShape, matrixShape, ROWS, SIDE } from "./matrices.js";
import matricesSource from "./matrices.wgsl";
import mergeSlotsSource from "./merge-slots.wgsl";
import nonFiniteSource from "./non-finite.wgsl";
import halvesSource from "./pack-halves.wgsl";
import queryRowSource from "./query-row.wgsl";
import { ownMask, type Wave } from "./range.js";
import barrierSource from "./reduce-barrier.wgsl";
import subgroupSource from "./reduce-subgroup.wgsl";
import tileSource from "./tile.wgsl";
import { mostWaveRows, slotWaves, slotWorkspace } from "./waves.js";
import { blockWindows, tokenWindow } from "./windows.js";

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
  source: listsSource + queryRowSource + halvesSource + matricesSource + attendMatrixSource,
  bindings: {
    q: read("vec4<u32>"),
    k: read("vec4<u32>"),
    v: read("vec4<u32>"),
    lists: read("u32"),
    slots: write("vec4<u32>"),
    slotLse: write("f32"),
  },
  params: ATTEND_PARAMS,
});

const MERGE_SLOTS = kernel({
  name: "merge-slots",
  source: mergeSlotsSource,
  bindings: { slots: read("vec4<u32>"), slotLse: read("f32"), out: write("quads"), lse: write("u32") },
  params: {
    ...({ rows: "u32", waveRows: "u32", group: "u32", kvHeads: "u32" } as const),
    ...({ firstHead: "u32", firstToken: "u32", d: "u32" } as const),
  },
});

/** Attention over routed blocks by the slot plan: lists of queries block by block, slots, merge. */
export function attend(context: Context, problem: AttendProblem, outputs: AttentionResult): void {
  if (outputs.out.size === 0) return;
  // A chunk of keys and a chunk of values lie beside what each subgroup has.
  const matrices = matrixShape(context, problem.dtype, problem.headDim, (eights) => 2 * SIDE * (eights + 1));
  if (matrices) attendOnMatrices(context, problem, matrices, outputs);
  else attendInTiles(context, problem, outputs);
}

/** In float32, the own block of a causal query merged with its slots. */
function attendInTiles(context: Context, problem: AttendProblem, { out, lse }: AttentionResult): void {
  const { headDim, routing } = problem;
  const tile = forwardTile(context, headDim);
  const { definition, SUBGROUPS } = chooseVariant(context, ATTEND);
  const constants = forwardConstants(context, problem, tile, SUBGROUPS);
  const mask = ownMask(routing);
  const count = routing.indices.shape[2];
  inFloat32(context, out, (wide) => {
    const waves = listWaves(context, problem, tile.BQ);
    for (const wave of waves) {
      const slots = slotWorkspace(context, problem, waves, count);
      const marks = { slots, places: count };
      attendLists(context, problem, wave, {
        definition,
        constants,
        entries: tile.BQ,
        marks,
        buffers: { slots },
      });
      attentionMerged(context, problem, mask, wave, { piece: slots, count }, { out: wide, lse });
      slots.free();
    }
  });
}

/** Threads of a workgroup: as in `merge-slots.wgsl`. */
const MERGE_THREADS = 128;

/** On the matrix units, the own block of a causal query in a slot like the others; slots in f16. */
function attendOnMatrices(
  context: Context,
  problem: AttendProblem,
  { SUBGROUP_COUNT, STEPS, PAIRS, EIGHTS }: MatrixShape,
  { out, lse }: AttentionResult,
): void {
  const { commands } = context;
  const { heads, kvHeads, headDim, routing } = problem;
  const count = routing.indices.shape[2];
  const group = groupOf(problem);
  const entries = ROWS * SUBGROUP_COUNT;
  const constants = {
    ...{ MATRICES: true, SUBGROUPS: true, CAUSAL: routing.causal, SUBGROUP_COUNT, STEPS, PAIRS },
    FETCHED: Math.ceil(STEPS / SUBGROUP_COUNT),
  };
  const waves = listWaves(context, problem, entries, 2 * headDim);
  const mostSlots = mostWaveRows(problem, waves) * count;
  for (const wave of waves) {
    const { firstHead, headCount, firstToken, tokens } = wave;
    const waveRows = tokens * group;
    const rows = headCount * waveRows;
    const slots = commands.workspace((mostSlots * headDim) / 2);
    const slotLse = commands.workspace(mostSlots);
    const buffers = { slots, slotLse };
    attendLists(context, problem, wave, {
      ...{ definition: ATTEND_MATRIX, constants, entries, marks: { slotLse }, withOwn: true, buffers },
    });
    const range = { first: firstToken, end: firstToken + tokens };
    commands.launch(MERGE_SLOTS, {
      buffers: {
        ...buffers,
        out: tokenWindow(out, heads * headDim, range),
        lse: tokenWindow(lse, heads, range),
      },
      params: { rows, waveRows, group, kvHeads, firstHead, firstToken, d: headDim },
      constants: { EIGHTS, SLOTS: count, UNUSED },
      groups: Math.ceil(rows / Math.floor(MERGE_THREADS / EIGHTS)),
    });
    for (const piece of [slots, slotLse]) piece.free();
  }
}

/** The blocks of the keys that can be bound at once. */
const keyWindows = (context: Context, problem: AttendProblem) =>
  blockWindows(problem.routing.cuSeqlensK, problem.routing.blockSize, {
    blocks: Number.POSITIVE_INFINITY,
    tokens: mostBound(context, problem).keys,
  });

/** The waves of a problem: see {@link slotWaves}. */
function listWaves(context: Context, problem: AttendProblem, entries: number, slotBytes?: number): Wave[] {
  const { cuSeqlensK, blockSize, indices } = problem.routing;
  const blocks = cuBlocks(cuSeqlensK, blockSize).at(-1) as number;
  const headLimit = Math.max(1, listHeads(context, blocks, entries));
  return slotWaves(context, problem, indices.shape[2], headLimit, slotBytes);
}

/** What a kernel reads that attends lists, beside the slots that it writes. */
type Input = "q" | "k" | "v" | "lists";

/** How the lists of a wave are attended. */
interface ListAttention<B extends string> {
  readonly definition: Kernel<Input | B, keyof typeof ATTEND_PARAMS>;
  readonly constants: Readonly<Record<string, number | boolean>>;
  /** Entries of a list that a workgroup has. */
  readonly entries: number;
  readonly marks: SlotMarks;
  readonly withOwn?: boolean;
  /** What it writes. */
  readonly buffers: Readonly<Record<B, Piece>>;
}

/** Attends the blocks that the rows of a wave are routed to, into slots. */
function attendLists<B extends string>(
  context: Context,
  problem: AttendProblem,
  wave: Wave,
  { definition, constants, entries, marks, withOwn = false, buffers }: ListAttention<B>,
): void {
  const { q, k, v, heads, kvHeads, headDim, scale, routing } = problem;
  const { firstHead, firstToken, tokens } = wave;
  const group = groupOf(problem);
  const lists = buildLists(context, problem, wave, entries, { marks, leastTiles: 0, withOwn });
  for (const { blocks, tokens: keys } of keyWindows(context, problem)) {
    const inputs: Record<Input, Argument> = {
      q: tokenWindow(q, heads * headDim, { first: firstToken, end: firstToken + tokens }),
      k: tokenWindow(k, kvHeads * headDim, keys),
      v: tokenWindow(v, kvHeads * headDim, keys),
      lists: lists.piece,
    };
    context.commands.launch(definition, {
      buffers: { ...inputs, ...buffers },
      params: {
        ...{ ...lists.layout, kvHeads, firstHead, firstToken, waveRows: tokens * group },
        ...{ blockSize: routing.blockSize, firstBlock: blocks.first, endBlock: blocks.end },
        ...{ places: routing.indices.shape[2], group, d: headDim, scale },
      },
      constants,
      vector: headDim % 4 === 0,
      groups: lists.mostTiles,
    });
  }
  lists.piece.free();
}
