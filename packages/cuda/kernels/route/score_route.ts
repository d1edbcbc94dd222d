import { Arguments, type Device } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";
import { type CentroidRouting, LONGEST_LIST, rangeOptions, routedRanges } from "./plain_route.js";
import { queryRanges, type Ranges } from "./ranges.js";

/** As in block_scores.cu, select_short.cu and select_long.cu. */
const [SPAN, SCORE_THREADS, MOST_WARPS, BLOCKS_AT_ONCE, LONG_THREADS] = [128, 256, 16, 512, 256];

/** Shared memory of block_scores.cu beside the queries. */
const STATIC_SHARED = 4096;

/** Where scores, and the centroids that they are computed from, lie. */
export interface ScoreLayout {
  /** Address of float32 `[tokens, H, stride]`. */
  readonly scores: number;
  /** Blocks that there is room for. */
  readonly stride: number;
  /** Address of the page table, and centroids a page; 0 and 1 where centroids lie in a row. */
  readonly pageTable: number;
  readonly blocksPerPage: number;
}

/**
 * Routes by scores written to memory, in waves of queries for which the workspace has room. For few queries
 * and many blocks it occupies the device where `plainRoute` would not, and it has no longest list.
 */
export function scoreRoute(device: Device, problem: CentroidRouting, indices: number): void {
  const { heads, cuSeqlens } = problem;
  const tokens = cuSeqlens[cuSeqlens.length - 1];
  const { mostBlocks } = routedRanges(device, problem, tokens);
  const stride = Math.max(1, mostBlocks);
  const wave = Math.max(1, Math.floor(device.maxWorkspaceBytes / (4 * heads * stride)));
  for (let begin = 0; begin < tokens; begin += wave) {
    const end = Math.min(tokens, begin + wave);
    const ranges = queryRanges(device, problem, {
      ...rangeOptions(problem),
      most: tokens,
      part: [begin, end],
    });
    using scores = device.scratch(4 * (end - begin) * heads * stride);
    const layout = { scores: scores.pointer, stride, pageTable: 0, blocksPerPage: 1 };
    writeScores(device, problem, ranges, layout);
    selectBlocks(device, problem, ranges, layout, indices);
  }
}

/** The scores of the ranges' queries against the blocks that some of them may choose. */
export function writeScores(
  device: Device,
  problem: Omit<CentroidRouting, "cuSeqlens" | "cuSeqlensK" | "cuCentroids">,
  ranges: Ranges,
  layout: ScoreLayout,
): void {
  const { dtype, q, centroids, heads, kvHeads, headDim, blockSize, causal } = problem;
  const rows = (ranges.longest * heads) / kvHeads;
  // Query rows of a CTA: those that share a key head, where their float32 copies fit into shared memory.
  const fitting = (device.sharedBytesPerBlock - STATIC_SHARED) / (4 * headDim);
  const together = rows > 4 && fitting >= 8 ? 8 : rows > 1 && fitting >= 4 ? 4 : 1;
  const spans = ceilDiv(layout.stride, SPAN);
  const args = new Arguments()
    .pointer(q)
    .pointer(centroids)
    .pointer(layout.pageTable)
    .int(layout.blocksPerPage)
    .pointer(ranges.table)
    .pointer(layout.scores)
    .int(heads)
    .int(kvHeads)
    .int(headDim)
    .int(blockSize)
    .int(Number(causal))
    .int(spans)
    .int(ranges.firstToken)
    .int(layout.stride);
  const kernel = device.kernel("block_scores", `block_scores_${dtype}_${together}`);
  const grid = [ranges.count * spans, kvHeads, ceilDiv(rows, together)] as const;
  device.launch(kernel, grid, SCORE_THREADS, together * headDim * 4, args);
}

/** The best blocks by written scores. */
export function selectBlocks(
  device: Device,
  { heads, blockSize, causal, slots }: Pick<CentroidRouting, "heads" | "blockSize" | "causal" | "slots">,
  ranges: Ranges,
  { scores, stride }: ScoreLayout,
  indices: number,
): void {
  const args = new Arguments()
    .pointer(scores)
    .pointer(ranges.table)
    .pointer(indices)
    .int(blockSize)
    .int(slots)
    .int(Number(causal))
    .int(ranges.longest)
    .int(ranges.firstToken)
    .int(stride);
  const grid = [ranges.count * ranges.longest, heads, 1] as const;
  if (slots - Number(causal) > LONGEST_LIST) {
    device.launch(device.kernel("select_long", "select_long"), grid, LONG_THREADS, 0, args);
    return;
  }
  const warps = Math.min(MOST_WARPS, ceilDiv(stride, BLOCKS_AT_ONCE));
  const shared = warps * (slots - Number(causal)) * 8;
  device.launch(device.kernel("select_short", "select_short"), grid, 32 * warps, shared, args);
}
