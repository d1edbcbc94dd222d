import type { AttendBackwardProblem, AttentionGradients, FloatDType } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { tensorCores } from "../common/sm80.js";
import { addWave, type BackwardWave, MOST_KEYS, slotAttendBackward } from "./slot_backward.js";

/** As in the kernels: the keys of a tile, and the rows of queries that pass by at once. */
interface Tile {
  readonly keys: number;
  readonly rows: number;
}

/** The smallest tile for chunks of so many keys. */
export function keyTile(headDim: number, chunkKeys: number): Tile {
  const keys = chunkKeys <= 64 ? 64 : MOST_KEYS;
  return { keys, rows: headDim > 64 ? 32 : 64 };
}

/** Shared memory of a CTA: keys, two tiles of queries and gradients of outputs, and ds. */
export const keyTileBytes = (headDim: number, { keys, rows }: Tile): number =>
  2 * (headDim * (keys + 4 * rows) + keys * rows);

/** Whether the portable kernels for tensor cores are allowed and made for gradients of such elements and rows. */
export const gradientCores = (
  device: Device,
  problem: { readonly dtype: FloatDType; readonly headDim: number },
): boolean => tensorCores(device, problem) && problem.headDim <= 128;

/** Rows of a work item on long lists, where they cost the least. */
const MOST_ROWS = 4096;
/** Work items that a multiprocessor should have, at least, for none to wait for another. */
const ITEMS = 8;

/** Gradients of routed attention on tensor cores, where {@link gradientCores} says so and the routing has slots. */
export function sm80AttendBackward(
  device: Device,
  problem: AttendBackwardProblem,
  gradients: AttentionGradients,
): void {
  slotAttendBackward(device, problem, gradients, {
    packed: false,
    mostRows(rows) {
      const even = 64 * Math.ceil(rows / (64 * ITEMS * device.multiprocessors));
      return Math.min(MOST_ROWS, Math.max(256, even));
    },
    differentiate: (wave) => differentiate(device, problem, wave),
  });
}

function differentiate(device: Device, problem: AttendBackwardProblem, wave: BackwardWave): void {
  const { q, dOut, k, v, dtype, headDim } = problem;
  const { chunks } = wave;
  using ticket = device.scratch(4);
  device.fill(ticket.pointer, 4, 0);
  const args = addWave(new Arguments(), problem, wave, ticket.pointer)
    .pointer(pointerOf(q))
    .pointer(pointerOf(dOut))
    .pointer(pointerOf(k))
    .pointer(pointerOf(v));
  const tile = keyTile(headDim, chunks.keys);
  const kernel = device.kernel(
    "sm80_attend_backward",
    `sm80_attend_backward_${dtype}_d${headDim}_b${tile.keys}`,
  );
  const resident = MOST_KEYS / tile.keys;
  const grid = [resident * device.multiprocessors, 1, 1] as const;
  device.launch(kernel, grid, 2 * tile.keys, keyTileBytes(headDim, tile), args);
}
