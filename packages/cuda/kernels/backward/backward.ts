import {
  ArgumentError,
  type AttendBackwardProblem,
  type AttentionBackwardProblem,
  type AttentionGradients,
  bytesPerElement,
  type Tensor,
} from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv, NO_WINDOW, rowSuffix, SLAB } from "../common/launch.js";
import { type BlockLists, invert } from "../route/invert.js";
import { queryRanges, type Ranges } from "../route/ranges.js";
import { gradientCores, sm80AttendBackward } from "./sm80_attend_backward.js";
import { sm80DenseBackward } from "./sm80_dense_backward.js";
import { sm90AttendBackward, sm90Differentiates } from "./sm90_attend_backward.js";

/** `Backend.attentionBackward`. */
export function attentionBackward(
  device: Device,
  problem: AttentionBackwardProblem & { causal: boolean },
  gradients: AttentionGradients,
): void {
  denseBackward(device, problem, { causal: problem.causal, window: NO_WINDOW }, gradients);
}

/** `Backend.windowAttentionBackward`. */
export function windowAttentionBackward(
  device: Device,
  problem: AttentionBackwardProblem & { window: number },
  gradients: AttentionGradients,
): void {
  const window = Math.min(problem.window, NO_WINDOW);
  denseBackward(device, problem, { causal: true, window }, gradients);
}

/** The keys that a query sees, of all keys or of the blocks that it chose. */
interface Sight {
  readonly causal: boolean;
  readonly window: number;
}

function denseBackward(
  device: Device,
  problem: AttentionBackwardProblem,
  sight: Sight,
  gradients: AttentionGradients,
): void {
  clearUnseen(device, problem, gradients);
  if (gradientCores(device, problem)) {
    sm80DenseBackward(device, problem, sight, gradients);
    return;
  }
  const ranges = wholeSequences(device, problem, { causal: sight.causal });
  using deltas = device.scratch(4 * problem.tokens * problem.heads);
  queryGradients(
    device,
    problem,
    { ranges, indices: 0, slots: 1, blockSize: 1, ...sight },
    deltas.pointer,
    gradients,
  );
  const taken = { firstKvHead: 0, kvHeads: problem.kvHeads };
  keyGradients(
    device,
    problem,
    { ranges, slots: 0, blockSize: 1, ...sight, ...taken },
    deltas.pointer,
    gradients,
  );
}

/** Share of the temporary memory that lists of queries may take. */
const LISTS = 0.5;

/**
 * `Backend.attendBackward`: the routing is turned round, as many key heads at once as the workspace has room for.
 * @throws ArgumentError for a routing of 2^31 slots a head or more.
 */
export function attendBackward(
  device: Device,
  problem: AttendBackwardProblem,
  gradients: AttentionGradients,
): void {
  const { tokens, heads, kvHeads, routing } = problem;
  const { blockSize, causal } = routing;
  const slots = routing.indices.shape[2];
  if (slots === 0) {
    for (const tensor of [gradients.dq, gradients.dk, gradients.dv]) clear(device, tensor);
    return;
  }
  if (tokens * slots >= 2 ** 31) {
    throw new ArgumentError("routing", [tokens, heads, slots], "less than 2^31 slots a head");
  }
  clearUnseen(device, problem, gradients);
  if (sm90Differentiates(device, problem)) {
    sm90AttendBackward(device, problem, gradients);
    return;
  }
  if (gradientCores(device, problem)) {
    sm80AttendBackward(device, problem, gradients);
    return;
  }
  const ranges = wholeSequences(device, problem, { causal, blockSize });
  using deltas = device.scratch(4 * tokens * heads);
  const sight = { causal, window: NO_WINDOW, ranges, slots, blockSize };
  queryGradients(
    device,
    problem,
    { indices: pointerOf(routing.indices), ...sight },
    deltas.pointer,
    gradients,
  );

  const group = heads / kvHeads;
  const bytesOfHead = 13 * slots * Math.max(1, tokens) * group; // entries, counts for the scatter, work items
  const most = Math.max(1, Math.floor((LISTS * device.maxWorkspaceBytes) / bytesOfHead));
  for (let firstKvHead = 0; firstKvHead < kvHeads; firstKvHead += most) {
    const taken = { firstKvHead, kvHeads: Math.min(most, kvHeads - firstKvHead) };
    using lists = invert(
      device,
      {
        indices: pointerOf(routing.indices),
        heads,
        slots,
        firstHead: firstKvHead * group,
        takenHeads: taken.kvHeads * group,
        mostRows: 2 ** 30,
      },
      ranges,
    );
    keyGradients(device, problem, { ...sight, ...taken, lists }, deltas.pointer, gradients);
  }
}

/** One range for each sequence that has queries. */
const wholeSequences = (
  device: Device,
  problem: AttentionBackwardProblem,
  options: { causal: boolean; blockSize?: number },
): Ranges => queryRanges(device, problem, { ...options, most: 2 ** 31 - 1 });

const clear = (device: Device, tensor: Tensor): void =>
  device.fill(pointerOf(tensor), tensor.size * bytesPerElement(tensor.dtype), 0);

/** Keys of sequences without queries get no gradient, and are in no range. */
function clearUnseen(
  device: Device,
  { cuSeqlens, cuSeqlensK }: AttentionBackwardProblem,
  { dk, dv }: AttentionGradients,
): void {
  const unseen = cuSeqlens.some(
    (begin, s) => begin === cuSeqlens[s + 1] && cuSeqlensK[s] < cuSeqlensK[s + 1],
  );
  if (!unseen) return;
  clear(device, dk);
  clear(device, dv);
}

/** As in row_gradients.cuh. */
const MOST_WARPS = 4;
/** Shared memory that the rows of a CTA may take. */
const MOST_SHARED = 32 * 1024;

/** Warps of a CTA, a row of queries or keys each, and the shared memory of their rows. */
function warpsFor(headDim: number): { readonly warps: number; readonly shared: number } {
  const rowBytes = 2 * 16 * ceilDiv(headDim, 4);
  const warps = Math.max(1, Math.min(MOST_WARPS, Math.floor(MOST_SHARED / rowBytes)));
  return { warps, shared: warps * rowBytes };
}

/** Writes dq, and `D = dOut·out` float32 `[T, H]` to `deltas`. `indices`: the address of a routing's, or 0. */
function queryGradients(
  device: Device,
  problem: AttentionBackwardProblem,
  sight: Sight & { ranges: Ranges; indices: number; slots: number; blockSize: number },
  deltas: number,
  { dq }: AttentionGradients,
): void {
  const { dtype, heads, kvHeads, headDim } = problem;
  const { ranges, indices, slots, blockSize } = sight;
  const { warps, shared } = warpsFor(headDim);
  const tiles = ceilDiv(ranges.longest, warps);
  const args = new Arguments()
    .pointer(pointerOf(problem.dOut))
    .pointer(pointerOf(problem.q))
    .pointer(pointerOf(problem.k))
    .pointer(pointerOf(problem.v))
    .pointer(pointerOf(problem.out))
    .pointer(pointerOf(problem.lse))
    .pointer(indices)
    .pointer(ranges.table)
    .pointer(pointerOf(dq))
    .pointer(deltas)
    .int(heads)
    .int(kvHeads)
    .int(headDim)
    .int(blockSize)
    .int(slots)
    .int(Number(sight.causal))
    .int(sight.window)
    .float(problem.scale)
    .int(tiles);
  const grid = [ranges.count * tiles, heads, ceilDiv(headDim, SLAB)] as const;
  const name = `plain_query_gradients_${rowSuffix(dtype, headDim)}`;
  device.launch(device.kernel("plain_query_gradients", name), grid, 32 * warps, shared, args);
}

/** Writes dk and dv of some key heads. `lists`: of the query heads that read them; without, queries see all keys. */
function keyGradients(
  device: Device,
  problem: AttentionBackwardProblem,
  sight: Sight & {
    ranges: Ranges;
    lists?: BlockLists;
    slots: number;
    blockSize: number;
    firstKvHead: number;
    kvHeads: number;
  },
  deltas: number,
  { dk, dv }: AttentionGradients,
): void {
  const { dtype, heads, kvHeads, headDim, cuSeqlensK } = problem;
  const { ranges, lists } = sight;
  const { warps, shared } = warpsFor(headDim);
  const longest = cuSeqlensK.reduce(
    (most, begin, s) => Math.max(most, (cuSeqlensK[s + 1] ?? begin) - begin),
    0,
  );
  const tiles = ceilDiv(longest, warps);
  const args = new Arguments()
    .pointer(pointerOf(problem.dOut))
    .pointer(pointerOf(problem.q))
    .pointer(pointerOf(problem.k))
    .pointer(pointerOf(problem.v))
    .pointer(pointerOf(problem.lse))
    .pointer(deltas)
    .pointer(ranges.table)
    .pointer(lists?.counts ?? 0)
    .pointer(lists?.starts ?? 0)
    .pointer(lists?.entries ?? 0)
    .int(ranges.blocks)
    .int(ranges.tokens)
    .int(sight.slots)
    .int(sight.blockSize)
    .pointer(pointerOf(dk))
    .pointer(pointerOf(dv))
    .int(heads)
    .int(kvHeads)
    .int(headDim)
    .int(sight.firstKvHead)
    .int(Number(sight.causal))
    .int(sight.window)
    .float(problem.scale)
    .int(tiles);
  const grid = [ranges.count * tiles, sight.kvHeads, ceilDiv(headDim, SLAB)] as const;
  const name = `plain_key_gradients_${rowSuffix(dtype, headDim)}`;
  device.launch(device.kernel("plain_key_gradients", name), grid, 32 * warps, shared, args);
}
