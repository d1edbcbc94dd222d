import { cuBlocks, type RouteCentroidsProblem, type RouteProblem, type Tensor } from "@moba-js/tensor";
import { type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";
import { centroids, computeCentroids, roundCentroids } from "./centroids.js";
import {
  type CentroidRouting,
  LONGEST_LIST,
  plainRoute,
  RANGE,
  routedRanges,
  TILE_QUERIES,
} from "./plain_route.js";
import { scoreRoute } from "./score_route.js";
import { sm80Route, sm80Routes } from "./sm80_route.js";
import { sm90Route, sm90Routes } from "./sm90_route.js";

export { centroids };

/** `Backend.route`: centroids, then routing by them. */
export function route(device: Device, problem: RouteProblem, indices: Tensor<"i32">): void {
  const { q, k, dtype, cuSeqlens, cuSeqlensK, blockSize, causal, heads, kvHeads, headDim, tokens, slots } =
    problem;
  if (tokens === 0 || slots === 0) return;
  const cuCentroids = cuBlocks(cuSeqlensK, blockSize);
  const elements = cuCentroids[cuCentroids.length - 1] * kvHeads * headDim;
  using means = device.scratch(4 * elements);
  const shape = { dtype, heads, kvHeads, headDim, blockSize, slots, causal };
  const routing = { q: pointerOf(q), centroids: means.pointer, cuSeqlens, cuSeqlensK, cuCentroids, ...shape };
  const path = pathOf(device, routing);
  using rounded = device.scratch(takesRounded(path) ? 2 * elements : 0);
  computeCentroids(device, { k, cuSeqlens: cuSeqlensK, blockSize }, means.pointer, rounded.pointer);
  routeOn(path, device, routing, rounded.pointer, pointerOf(indices));
}

/** `Backend.routeCentroids`. */
export function routeCentroids(device: Device, problem: RouteCentroidsProblem, indices: Tensor<"i32">): void {
  const { q, slots } = problem;
  const [tokens, heads, headDim] = q.shape;
  if (tokens === 0 || slots === 0) return;
  const [blocks, kvHeads] = problem.centroids.shape;
  const centroids = pointerOf(problem.centroids);
  const shape = { dtype: q.dtype, heads, kvHeads, headDim, causal: true };
  const routing = { ...problem, ...shape, q: pointerOf(q), centroids };
  const path = pathOf(device, routing);
  using rounded = device.scratch(takesRounded(path) ? 2 * blocks * kvHeads * headDim : 0);
  if (takesRounded(path)) roundCentroids(device, routing, blocks, rounded.pointer);
  routeOn(path, device, routing, rounded.pointer, pointerOf(indices));
}

/**
 * The kernels that can route: by scores in memory, or in tiles of queries on float32 units or tensor cores.
 */
type RoutePath = "scores" | "plain" | "sm80" | "sm90";

const takesRounded = (path: RoutePath): boolean => path === "sm80" || path === "sm90";

/** The kernel that suits the device and the numbers of queries and blocks. */
function pathOf(device: Device, problem: CentroidRouting): RoutePath {
  const { heads, slots, causal } = problem;
  const { longest, count, mostBlocks } = routedRanges(device, problem, RANGE);
  // Tiles of few queries would leave most of the device idle while they pass by many blocks.
  const tiles = count * heads * ceilDiv(longest, TILE_QUERIES);
  if (longest <= mostBlocks && tiles < 2 * device.multiprocessors) return "scores";
  if (sm90Routes(device, problem, mostBlocks)) return "sm90";
  if (sm80Routes(device, problem, mostBlocks)) return "sm80";
  return slots - Number(causal) > LONGEST_LIST ? "scores" : "plain";
}

function routeOn(
  path: RoutePath,
  device: Device,
  problem: CentroidRouting,
  rounded: number,
  indices: number,
): void {
  if (path === "sm90") sm90Route(device, problem, rounded, indices);
  else if (path === "sm80") sm80Route(device, problem, rounded, indices);
  else if (path === "plain") plainRoute(device, problem, indices);
  else scoreRoute(device, problem, indices);
}
