import type { CuSeqlens, FloatDType } from "@moba-js/tensor";
import { Arguments, type Device } from "../../src/device.js";
import { ceilDiv, scoreTileBytes } from "../common/launch.js";
import { queryRanges, type Ranges } from "./ranges.js";

/** Routing by centroids that are there. */
export interface CentroidRouting {
  readonly dtype: FloatDType;
  /** Device addresses of `[T, H, d]` and float32 `[blocks, Hkv, d]`. */
  readonly q: number;
  readonly centroids: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly blockSize: number;
  readonly causal: boolean;
  /** Slots a row of the result has. */
  readonly slots: number;
  readonly cuSeqlens: CuSeqlens;
  readonly cuSeqlensK: CuSeqlens;
  /** Where each sequence's centroids begin. */
  readonly cuCentroids: CuSeqlens;
}

/** Blocks that the lists of plain_route and select_short have room for, the own block not counted. */
export const LONGEST_LIST = 64;

/** As in score_tile.cuh. */
export const TILE_QUERIES = 64;
const THREADS = 256;
/**
 * Queries of a range: many, since each is a row of a table, but not more than the tail of tiles without
 * queries is worth.
 */
export const RANGE = 4096;

/** The queries in ranges of at most `most`. */
export const routedRanges = (device: Device, problem: CentroidRouting, most: number): Ranges =>
  queryRanges(device, problem, { most, ...rangeOptions(problem) });

/** What ranges depend on. */
export const rangeOptions = ({ blockSize, causal, cuCentroids }: CentroidRouting) => ({
  blockSize,
  causal,
  cuCentroids,
});

/** Routes any number of queries; `slots − causal` is at most {@link LONGEST_LIST}. */
export function plainRoute(device: Device, problem: CentroidRouting, indices: number): void {
  const { dtype, q, centroids, heads, kvHeads, headDim, blockSize, causal, slots } = problem;
  const ranges = routedRanges(device, problem, RANGE);
  const tiles = ceilDiv(ranges.longest, TILE_QUERIES);
  const args = new Arguments()
    .pointer(q)
    .pointer(centroids)
    .pointer(ranges.table)
    .pointer(indices)
    .int(heads)
    .int(kvHeads)
    .int(headDim)
    .int(blockSize)
    .int(slots)
    .int(Number(causal))
    .int(tiles);
  const shared = scoreTileBytes(headDim) + TILE_QUERIES * (slots - Number(causal)) * 8;
  const kernel = device.kernel("plain_route", `plain_route_${dtype}`);
  device.launch(kernel, [ranges.count * tiles, heads, 1], THREADS, shared, args);
}
