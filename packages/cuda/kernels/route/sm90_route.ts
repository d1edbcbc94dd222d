import { Arguments, type Device } from "../../src/device.js";
import type { CentroidRouting } from "./plain_route.js";
import { queryRanges } from "./ranges.js";

/** Blocks that a row may choose by score: one fewer than the longest list of sm90_route.cu. */
const LONGEST_CHOICE = 15;
/** Scores give up one bit for each doubling of the blocks; beyond these too little of them is left. */
const MOST_BLOCKS = 16384;

/** As in sm90_route.cu: warpgroups of consumers, centroids of a tile, tiles of them, bytes where a warp's scores wait. */
const [WARPGROUPS, CENTROID_TILE, CENTROID_STAGES, WAITING_BYTES] = [5, 64, 4, 2 * 16 * 128];

/** Whether {@link sm90Route} can route so. */
export function sm90Routes(device: Device, problem: CentroidRouting, mostBlocks: number): boolean {
  const { dtype, headDim, slots, causal } = problem;
  return (
    device.path === "sm90" &&
    dtype !== "f32" &&
    (headDim === 64 || headDim === 128) &&
    slots - Number(causal) <= LONGEST_CHOICE &&
    mostBlocks <= MOST_BLOCKS
  );
}

/**
 * Routing on Hopper's tensor cores.
 * @param rounded address of the centroids in the dtype of q, `[Hkv, blocks, d]`
 */
export function sm90Route(device: Device, problem: CentroidRouting, rounded: number, indices: number): void {
  const { dtype, q, centroids, heads, kvHeads, headDim, blockSize, causal, slots, cuCentroids } = problem;
  if (dtype === "f32") return; // see sm90Routes
  const ranges = queryRanges(device, problem, { blockSize, causal, cuCentroids, most: 64 * WARPGROUPS });
  const tokens = problem.cuSeqlens[problem.cuSeqlens.length - 1];
  const blocks = cuCentroids[cuCentroids.length - 1];
  let mask = 1;
  while (mask < ranges.mostBlocks) mask *= 2;
  const row = heads * headDim;
  const args = new Arguments()
    .bytes(device.tensorMap(q, dtype, [row, tokens], [2 * row], [64, 64], 128), 64)
    .bytes(
      device.tensorMap(rounded, dtype, [headDim, kvHeads * blocks], [2 * headDim], [64, CENTROID_TILE], 128),
      64,
    )
    .pointer(q)
    .pointer(centroids)
    .pointer(ranges.table)
    .pointer(indices)
    .int(ranges.count)
    .int(heads)
    .int(heads / kvHeads)
    .int(blocks)
    .int(slots)
    .int(blockSize)
    .int(Number(causal))
    .int(mask - 1)
    .bytes(new Uint8Array(0), 64);
  const rowBytes = 2 * headDim;
  const shared =
    (WARPGROUPS * 64 + CENTROID_STAGES * CENTROID_TILE) * rowBytes + 4 * WARPGROUPS * WAITING_BYTES + 1024;
  const list = slots - Number(causal) < 8 ? 8 : 16;
  const kernel = device.kernel("sm90_route", `sm90_route_${dtype}_d${headDim}_l${list}`);
  device.launch(kernel, [device.multiprocessors, 1, 1], 128 * WARPGROUPS + 128, shared, args);
}
