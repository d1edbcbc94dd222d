import { ArgumentError } from "@moba-js/tensor";
import { Arguments, type Device, type Scratch } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";
import type { Ranges } from "./ranges.js";

/** What is to be turned round. */
export interface InvertProblem {
  /** Address of routing indices, int32 `[T, heads, slots]`. */
  readonly indices: number;
  /** `H` and the slots of the whole routing. */
  readonly heads: number;
  readonly slots: number;
  /** The first head to take, and how many. Default: all. */
  readonly firstHead?: number;
  readonly takenHeads?: number;
  /** Rows of a work item, at most: a multiple of 64. */
  readonly mostRows: number;
}

/**
 * A routing turned round: for each block, the list of the (query, slot) pairs that chose it. A segment is a
 * range of queries of one head, number `head · ranges.count + range`, heads counted from the first one taken.
 * All arrays are int32, given by address.
 */
export interface BlockLists extends Disposable {
  readonly ranges: Ranges;
  /** Heads taken, and segments. */
  readonly heads: number;
  readonly segments: number;
  /**
   * `[heads, ranges.blocks]`: length of each list, and where it begins in its segment's region of the
   * entries.
   */
  readonly counts: number;
  readonly starts: number;
  /**
   * `[heads, ranges.tokens, slots]`: entries `(token − first of its range) · slots + slot`, block by block.
   * The region of a segment begins at `(head · ranges.tokens + first token of the range − ranges.firstToken)
   * · slots`.
   */
  readonly entries: number;
  /**
   * `[segments, mostItems, 4]`: work items {block, begin in the region, rows, 0}: each a part of one list.
   */
  readonly items: number;
  readonly mostItems: number;
  /** `[segments]`: items of each segment, and `[segments + 1]`: those of the segments before. */
  readonly itemCounts: number;
  readonly phase: number;
  dispose(): void;
}

/** As in invert_count.cu, invert_columns.cu, invert_items.cu and invert_scatter.cu. */
const [COUNT_THREADS, COLUMN_THREADS, ITEM_THREADS, SCATTER_THREADS] = [128, 128, 512, 128];
/** Slots of a query, at most: a chunk's entries are counted in 14 bits. */
const MOST_SLOTS = 16_384;
/** Entries of a chunk of several queries, at most. */
const MOST_ENTRIES = 8192;
/**
 * Shared memory of any device that the kernels are for: 4 bytes an entry of a chunk, 8 a block. More blocks than it has room for are taken
 * in several windows.
 */
const SHARED_BYTES = 98_304;

/**
 * Queries that one CTA takes: enough CTAs to fill the device, but at least so many that a list gets eight entries of a chunk on
 * average, whole sectors, and the counts, one for each (CTA, block), stay few beside the entries.
 */
function chunkQueries(device: Device, ranges: Ranges, heads: number, slots: number): number {
  const filling = (ranges.tokens * heads) / (8 * device.multiprocessors);
  const chunk = Math.max(128, Math.min(512, filling), (8 * ranges.mostBlocks) / slots);
  return Math.min(32 * ceilDiv(chunk, 32), Math.max(1, Math.floor(MOST_ENTRIES / slots)));
}

/**
 * Turns a routing round: count, scan, cut into items, scatter. The result is the same in every run.
 * @throws ArgumentError for more than 16384 slots.
 */
export function invert(device: Device, problem: InvertProblem, ranges: Ranges): BlockLists {
  const { heads, slots, mostRows, firstHead = 0, takenHeads = heads } = problem;
  if (slots > MOST_SLOTS) throw new ArgumentError("routing slots", slots, `at most ${MOST_SLOTS}`);
  const indices = problem.indices + 4 * firstHead * slots;
  const chunk = chunkQueries(device, ranges, takenHeads, slots);
  const chunks = Math.max(1, ceilDiv(ranges.longest, chunk));
  const segments = takenHeads * ranges.count;
  const columns = ranges.blocks;
  const mostItems = ranges.mostBlocks + Math.floor((ranges.longest * slots) / mostRows);

  const arrays: Scratch[] = [];
  const array = (integers: number): number => {
    const scratch = device.scratch(4 * integers);
    arrays.push(scratch);
    return scratch.pointer;
  };
  const dispose = () => {
    for (const scratch of arrays) scratch.dispose();
  };
  try {
    const lists = {
      ranges,
      heads: takenHeads,
      segments,
      counts: array(takenHeads * columns),
      starts: array(takenHeads * columns),
      entries: array(takenHeads * ranges.tokens * slots),
      items: array(4 * segments * mostItems),
      mostItems,
      itemCounts: array(segments),
      phase: array(segments + 1),
    };
    using matrix = device.scratch(4 * takenHeads * chunks * columns);

    const entryBytes = 4 * chunk * slots;
    const room = Math.floor((SHARED_BYTES - entryBytes) / 8);
    const window = Math.min(room, Math.max(1, ranges.mostBlocks));
    const windows = ceilDiv(Math.max(1, ranges.mostBlocks), window);
    const count = new Arguments()
      .pointer(indices)
      .pointer(ranges.table)
      .pointer(matrix.pointer)
      .int(heads)
      .int(slots)
      .int(chunks)
      .int(chunk)
      .int(columns)
      .int(window);
    const countGrid = [ranges.count * chunks, takenHeads, windows] as const;
    device.launch(device.kernel("invert_count", "invert_count"), countGrid, COUNT_THREADS, 4 * window, count);

    const scan = new Arguments().pointer(matrix.pointer).pointer(lists.counts).int(chunks).int(columns);
    const columnGrid = [ceilDiv(columns, COLUMN_THREADS), takenHeads, 1] as const;
    device.launch(device.kernel("invert_columns", "invert_columns"), columnGrid, COLUMN_THREADS, 0, scan);

    const cut = new Arguments()
      .pointer(lists.counts)
      .pointer(ranges.table)
      .pointer(lists.starts)
      .pointer(lists.items)
      .pointer(lists.itemCounts)
      .int(columns)
      .int(mostRows)
      .int(mostItems);
    const itemGrid = [ranges.count, takenHeads, 1] as const;
    device.launch(device.kernel("invert_items", "invert_items"), itemGrid, ITEM_THREADS, 0, cut);

    const scatter = new Arguments()
      .pointer(indices)
      .pointer(ranges.table)
      .pointer(matrix.pointer)
      .pointer(lists.counts)
      .pointer(lists.starts)
      .pointer(lists.itemCounts)
      .pointer(lists.entries)
      .pointer(lists.phase)
      .int(heads)
      .int(slots)
      .int(chunks)
      .int(chunk)
      .int(columns)
      .int(window)
      .int(ranges.firstToken)
      .int(ranges.tokens);
    const scatterGrid = [countGrid[0] + 1, takenHeads, windows] as const;
    const kernel = device.kernel("invert_scatter", "invert_scatter");
    device.launch(kernel, scatterGrid, SCATTER_THREADS, 8 * window + entryBytes, scatter);

    return { ...lists, dispose, [Symbol.dispose]: dispose };
  } catch (error) {
    dispose(); // memory ran out, perhaps
    throw error;
  }
}
