import { type CentroidsProblem, cuBlocks, type Tensor } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv, packetElements, rowSuffix } from "../common/launch.js";
import type { CentroidRouting } from "./plain_route.js";

/**
 * As in centroids.cu: threads of a CTA along the channels and along the rows of blocks, and rows that a
 * thread takes at once.
 */
const [COLUMNS, LANES, ROWS_AT_ONCE] = [16, 8, 8];

/** `Backend.centroids`. */
export function centroids(device: Device, problem: CentroidsProblem, output: Tensor<"f32">): void {
  computeCentroids(device, problem, pointerOf(output), 0);
}

/**
 * Block means.
 * @param means address of float32 `[blocks, Hkv, d]`
 * @param rounded address for the same in the dtype of the keys, `[Hkv, blocks, d]`; 0: not wanted
 */
export function computeCentroids(
  device: Device,
  { k, cuSeqlens, blockSize }: CentroidsProblem,
  means: number,
  rounded: number,
): void {
  const [, kvHeads, headDim] = k.shape;
  const firstBlocks = cuBlocks(cuSeqlens, blockSize);
  const batch = cuSeqlens.length - 1;
  const channels = kvHeads * headDim;
  let lanes = 1;
  while (lanes < LANES && lanes * ROWS_AT_ONCE < blockSize) lanes *= 2;
  const args = new Arguments()
    .pointer(pointerOf(k))
    .pointer(device.constant(cuSeqlens))
    .pointer(device.constant(firstBlocks))
    .int(batch)
    .int(blockSize)
    .int(kvHeads)
    .int(headDim)
    .int(lanes)
    .pointer(means)
    .pointer(rounded);
  const grid = [
    ceilDiv(firstBlocks[batch], LANES / lanes),
    ceilDiv(channels, COLUMNS * packetElements(k.dtype, channels)),
    1,
  ] as const;
  const kernel = device.kernel("centroids", `centroids_${rowSuffix(k.dtype, channels)}`);
  device.launch(kernel, grid, COLUMNS * LANES, 0, args);
}

/** Threads of a CTA of round_centroids.cu. */
const ROUND_THREADS = 256;

/** Stored centroids in the dtype of the queries (2 bytes), `[Hkv, blocks, d]`, to an address. */
export function roundCentroids(
  device: Device,
  { dtype, centroids, kvHeads, headDim }: CentroidRouting,
  blocks: number,
  rounded: number,
): void {
  const args = new Arguments().pointer(centroids).pointer(rounded).int(blocks).int(kvHeads).int(headDim);
  const kernel = device.kernel("round_centroids", `round_centroids_${dtype}`);
  const grid = [ceilDiv(blocks * kvHeads * headDim, ROUND_THREADS), 1, 1] as const;
  device.launch(kernel, grid, ROUND_THREADS, 0, args);
}
