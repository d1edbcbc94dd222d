import { Arguments, type Device } from "../../src/device.js";
import { tensorCores } from "../common/sm80.js";
import type { CentroidRouting } from "./plain_route.js";
import { queryRanges } from "./ranges.js";

/** Lengths of the lists of candidates in sm80_route.cu. */
const LISTS = [8, 16, 64];
/** Scores give up one bit for each doubling of the blocks; beyond these too little of them is left. */
const MOST_BLOCKS = 16384;

/**
 * The shortest list for a routing, one longer than what is chosen: ties between the last chosen block and the next are settled
 * exactly. Among many blocks more candidates come close.
 */
function listOf({ slots, causal }: CentroidRouting, mostBlocks: number): number | undefined {
  const chosen = slots - Number(causal);
  const spare = mostBlocks > 4096 ? 4 : 1;
  return LISTS.find((length) => chosen + spare <= length) ?? LISTS.find((length) => chosen < length);
}

/** Whether {@link sm80Route} can route so. */
export const sm80Routes = (device: Device, problem: CentroidRouting, mostBlocks: number): boolean =>
  tensorCores(device, problem) && mostBlocks <= MOST_BLOCKS && listOf(problem, mostBlocks) !== undefined;

/**
 * Routing on tensor cores, on any architecture that has them.
 * @param rounded address of the centroids in the dtype of q, `[Hkv, blocks, d]`
 */
export function sm80Route(device: Device, problem: CentroidRouting, rounded: number, indices: number): void {
  const { dtype, q, centroids, heads, kvHeads, headDim, blockSize, causal, slots, cuCentroids } = problem;
  // As in sm80_route.cu: warps of 16 queries and centroids in a tile.
  const [warps, tile] = headDim === 256 ? [4, 32] : [8, 64];
  const ranges = queryRanges(device, problem, { blockSize, causal, cuCentroids, most: 16 * warps });
  const list = listOf(problem, ranges.mostBlocks);
  let columns = 2;
  while (columns < ranges.mostBlocks) columns *= 2;
  const args = new Arguments()
    .pointer(q)
    .pointer(rounded)
    .pointer(centroids)
    .pointer(indices)
    .pointer(ranges.table)
    .int(heads)
    .int(heads / kvHeads)
    .int(cuCentroids[cuCentroids.length - 1])
    .int(blockSize)
    .int(Number(causal))
    .int(slots)
    .int(slots - Number(causal))
    .int(columns - 1);
  const room = 4 * 32 * Math.max(tile / 4, (list as number) / 2);
  const shared = 2 * headDim * (2 * tile + 16 * warps) + warps * room;
  const kernel = device.kernel("sm80_route", `sm80_route_${dtype}_d${headDim}_top${list}`);
  device.launch(kernel, [ranges.count, heads, 1], 32 * warps, shared, args);
}
