import { Arguments, type Device } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";
import { type CentroidRouting, LONGEST_LIST, rangeOptions, routedRanges } from "./plain_route.js";
import { queryRanges, type Ranges } from "./ranges.js";

/** As in span_scores.cuh and select_long.cu. */
const [AT_ONCE, SPAN, SCORE_THREADS, LONG_THREADS] = [128, 512, 256, 256];
/** Spans are longer where so many CTAs a multiprocessor remain, since beginning and ending one takes time. */
const CTAS_PER_MULTIPROCESSOR = 4;

/** Shared memory of span_scores.cuh and its users beside the queries. */
const STATIC_SHARED = 22 * 1024;

/** Where centroids lie: address of the page table, and centroids a page; 0 and 1 where they lie in a row. */
export interface CentroidPages {
  readonly table: number;
  readonly size: number;
}

/** Routing of queries that are listed as ranges. */
export type RangeRouting = Omit<CentroidRouting, "cuSeqlens" | "cuSeqlensK" | "cuCentroids">;

/**
 * Routes by scores against all blocks, in waves of queries for which the workspace has room. For few queries
 * and many blocks it occupies the device where `plainRoute` would not, and it has no longest list.
 */
export function scoreRoute(device: Device, problem: CentroidRouting, indices: number): void {
  const { cuSeqlens } = problem;
  const tokens = cuSeqlens[cuSeqlens.length - 1];
  const { mostBlocks } = routedRanges(device, problem, tokens);
  const tokenBytes = temporaryBytes(problem, 1, mostBlocks);
  const wave = Math.max(1, Math.floor(device.maxWorkspaceBytes / Math.max(1, tokenBytes)));
  for (let begin = 0; begin < tokens; begin += wave) {
    const end = Math.min(tokens, begin + wave);
    const ranges = queryRanges(device, problem, {
      ...rangeOptions(problem),
      most: tokens,
      part: [begin, end],
    });
    using counters = device.scratch(4 * routeCounters(device, problem, ranges));
    device.fill(counters.pointer, counters.byteLength, 0);
    routeRanges(device, problem, ranges, { table: 0, size: 1 }, counters.pointer, indices);
  }
}

/** Whether lists are too long for select_short.cu. */
const isLong = ({ slots, causal }: RangeRouting): boolean => slots - Number(causal) > LONGEST_LIST;

const spansOf = (mostBlocks: number, spanBlocks: number): number =>
  Math.max(1, ceilDiv(mostBlocks, spanBlocks));

/** Memory for lists of candidates, or for all scores: at most, where spans are short. */
function temporaryBytes(problem: RangeRouting, tokens: number, mostBlocks: number, spanBlocks = AT_ONCE) {
  const { heads, slots, causal } = problem;
  const listed = spansOf(mostBlocks, spanBlocks) * (slots - Number(causal));
  return tokens * heads * (isLong(problem) ? 4 * mostBlocks : 8 * listed);
}

/** Blocks of a span. */
function spanLength(
  device: Device,
  { kvHeads }: RangeRouting,
  { count, mostBlocks }: Ranges,
  groups: number,
) {
  const ctas = (length: number) => count * kvHeads * groups * spansOf(mostBlocks, length);
  let length = AT_ONCE;
  while (length < SPAN && ctas(2 * length) >= CTAS_PER_MULTIPROCESSOR * device.multiprocessors) length *= 2;
  return length;
}

/** How query rows that share a key head are taken together: as many as their float32 copies fit into shared memory. */
function groupsOf(device: Device, { heads, kvHeads, headDim }: RangeRouting, { longest }: Ranges) {
  const rows = (longest * heads) / kvHeads;
  const fitting = (device.sharedBytesPerBlock - STATIC_SHARED) / (4 * headDim);
  const together = rows > 4 && fitting >= 8 ? 8 : rows > 1 && fitting >= 4 ? 4 : 1;
  return { together, groups: ceilDiv(rows, together) };
}

/** Counters that {@link routeRanges} takes, int32 each. */
export const routeCounters = (device: Device, problem: RangeRouting, ranges: Ranges): number =>
  isLong(problem) ? 0 : ranges.count * problem.kvHeads * groupsOf(device, problem, ranges).groups;

/** Routes the queries of ranges. `counters`: their address; they are zero before. */
export function routeRanges(
  device: Device,
  problem: RangeRouting,
  ranges: Ranges,
  pages: CentroidPages,
  counters: number,
  indices: number,
): void {
  const { dtype, q, centroids, heads, kvHeads, headDim, blockSize, causal, slots } = problem;
  const { mostBlocks, tokens, firstToken, longest } = ranges;
  const { together, groups } = groupsOf(device, problem, ranges);
  const spanBlocks = spanLength(device, problem, ranges, groups);
  const spans = spansOf(mostBlocks, spanBlocks);
  using temporary = device.scratch(temporaryBytes(problem, tokens, mostBlocks, spanBlocks));
  const args = new Arguments()
    .pointer(q)
    .pointer(centroids)
    .pointer(pages.table)
    .int(pages.size)
    .pointer(ranges.table)
    .pointer(temporary.pointer);
  if (!isLong(problem)) args.pointer(counters).pointer(indices);
  args.int(heads).int(kvHeads).int(headDim).int(blockSize).int(Number(causal)).int(spans);
  args.int(spanBlocks).int(firstToken);
  const grid = [ranges.count * spans * kvHeads, groups, 1] as const;
  const queryBytes = 4 * together * headDim;
  if (!isLong(problem)) {
    const listBytes = 8 * (SCORE_THREADS / 32) * slots;
    const kernel = device.kernel("select_short", `select_short_${dtype}_${together}`);
    device.launch(kernel, grid, SCORE_THREADS, Math.max(queryBytes, listBytes), args.int(slots));
    return;
  }
  const scores = device.kernel("block_scores", `block_scores_${dtype}_${together}`);
  device.launch(scores, grid, SCORE_THREADS, queryBytes, args.int(mostBlocks));

  const select = new Arguments()
    .pointer(temporary.pointer)
    .pointer(ranges.table)
    .pointer(indices)
    .int(blockSize)
    .int(slots)
    .int(Number(causal))
    .int(longest)
    .int(firstToken)
    .int(mostBlocks);
  const kernel = device.kernel("select_long", "select_long");
  device.launch(kernel, [ranges.count * longest, heads, 1], LONG_THREADS, 0, select);
}
