import { Arguments, type Device, type Scratch } from "../../src/device.js";
import type { BlockLists } from "../route/invert.js";

/** Work items of the backward pass: see `BackwardWave`. */
export interface CutLists extends Disposable {
  /** int32 `[segments, mostItems, 4]`: `{chunk, begin, rows, piece}`. */
  readonly items: number;
  readonly mostItems: number;
  /** int32 `[segments + 1]`: items of the segments before. */
  readonly itemStarts: number;
  /** Ranges of a key head, of all key heads. */
  readonly segments: number;
  /**
   * int32 `[key heads, ranges.blocks, 2]`: the first piece of each block's first chunk, and the items of each of its chunks, whose
   * pieces follow one another if there are several.
   */
  readonly pieceRanges: number;
}

const THREADS = 512;

/** Cuts the lists of blocks, those of a key head's query heads joined, into items of at most `mostRows` rows. */
export function cutLists(
  device: Device,
  { ranges, heads, counts }: BlockLists,
  cut: {
    readonly slots: number;
    readonly group: number;
    readonly chunks: number;
    readonly mostRows: number;
  },
): CutLists {
  const { slots, group, chunks, mostRows } = cut;
  const kvHeads = heads / group;
  const segments = kvHeads * ranges.count;
  const mostItems = chunks * (ranges.mostBlocks + Math.floor((ranges.longest * slots * group) / mostRows));
  const scratches: Scratch[] = [];
  const array = (integers: number): number => {
    const scratch = device.scratch(4 * integers);
    scratches.push(scratch);
    return scratch.pointer;
  };
  const lists = {
    items: array(4 * segments * mostItems),
    mostItems,
    itemStarts: array(segments + 1),
    segments,
    pieceRanges: array(2 * kvHeads * ranges.blocks),
  };
  using itemCounts = device.scratch(4 * segments);
  const args = new Arguments()
    .pointer(counts)
    .pointer(ranges.table)
    .pointer(lists.items)
    .pointer(itemCounts.pointer)
    .pointer(lists.pieceRanges)
    .int(ranges.blocks)
    .int(ranges.firstToken)
    .int(ranges.tokens)
    .int(slots)
    .int(group)
    .int(chunks)
    .int(mostRows)
    .int(mostItems);
  device.launch(device.kernel("cut_lists", "cut_lists"), [ranges.count, kvHeads, 1], THREADS, 0, args);
  const sum = new Arguments().pointer(itemCounts.pointer).pointer(lists.itemStarts).int(segments);
  device.launch(device.kernel("item_starts", "item_starts"), [1, 1, 1], THREADS, 0, sum);
  const dispose = () => {
    for (const scratch of scratches) scratch.dispose();
  };
  return { ...lists, [Symbol.dispose]: dispose };
}
