import type { AttendBackwardProblem, AttentionGradients } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { packsRows } from "../common/packed_rows.js";
import { addWave, type BackwardWave, slotAttendBackward } from "./slot_backward.js";

/** As in sm90_attend_backward.cu: keys of a chunk at most, and stages of keys, of values and of tiles of queries. */
interface Shape {
  readonly keys: 64 | 128;
  readonly keyStages: number;
  readonly valueStages: number;
  readonly tileStages: number;
}

const SHAPES: Readonly<Record<64 | 128, readonly [short: Shape, long: Shape]>> = {
  64: [
    { keys: 64, keyStages: 2, valueStages: 2, tileStages: 4 },
    { keys: 128, keyStages: 2, valueStages: 2, tileStages: 6 },
  ],
  128: [
    { keys: 64, keyStages: 1, valueStages: 1, tileStages: 2 },
    { keys: 128, keyStages: 2, valueStages: 1, tileStages: 3 },
  ],
};

/** Queries of a tile. */
const ROWS = 64;
const THREADS = 384;

/** Shared memory of a CTA: keys and values, tiles of q and dOut, and ds, of its one team or its two. */
function sharedBytes(headDim: 64 | 128, { keys, keyStages, valueStages, tileStages }: Shape): number {
  const teams = 128 / keys;
  const dsTiles = headDim === 64 && keys === 128 ? 2 : 1;
  const elements = (keyStages + valueStages) * keys * headDim + tileStages * 2 * ROWS * headDim;
  return teams * 2 * (elements + dsTiles * ROWS * keys) + 1024;
}

/** Rows of a work item on long lists, where they cost the least. */
const MOST_ROWS = 4096;
/** Work items that a multiprocessor should have, at least, for none to wait for another. */
const ITEMS = 8;

/** Whether {@link sm90AttendBackward} can compute the gradients of such a problem. */
export const sm90Differentiates = (
  { path }: Device,
  { dtype, headDim }: { readonly dtype: string; readonly headDim: number },
): boolean => path === "sm90" && dtype !== "f32" && (headDim === 64 || headDim === 128);

/** Gradients of routed attention on Hopper's tensor cores, where {@link sm90Differentiates} says so and the routing has slots. */
export function sm90AttendBackward(
  device: Device,
  problem: AttendBackwardProblem,
  gradients: AttentionGradients,
): void {
  slotAttendBackward(device, problem, gradients, {
    packed: packsRows(problem.dtype),
    mostRows(rows) {
      const even = ROWS * Math.ceil(rows / (ROWS * ITEMS * device.multiprocessors));
      return Math.min(MOST_ROWS, Math.max(256, even));
    },
    differentiate: (wave) => differentiate(device, problem, wave),
  });
}

function differentiate(device: Device, problem: AttendBackwardProblem, wave: BackwardWave): void {
  const { q, dOut, k, v, kvHeads, scale } = problem;
  const { chunks } = wave;
  const dtype = problem.dtype as "f16" | "bf16";
  const headDim = problem.headDim as 64 | 128;
  const shape = SHAPES[headDim][chunks.keys <= 64 ? 0 : 1];
  const row = kvHeads * headDim;
  const map = (address: number) =>
    device.tensorMap(address, dtype, [row, k.shape[0]], [2 * row], [64, shape.keys], 128);
  using ticket = device.scratch(4);
  device.fill(ticket.pointer, 4, 0);
  const args = addWave(new Arguments(), problem, wave, ticket.pointer)
    .bytes(map(pointerOf(k)), 64)
    .bytes(map(pointerOf(v)), 64)
    .pointer(pointerOf(q))
    .pointer(pointerOf(dOut))
    .float(scale * Math.LOG2E)
    .bytes(new Uint8Array(0), 64);
  const name = `sm90_attend_backward_${dtype}_d${headDim}_b${shape.keys}`;
  const kernel = device.kernel("sm90_attend_backward", name);
  device.launch(kernel, [device.multiprocessors, 1, 1], THREADS, sharedBytes(headDim, shape), args);
}
