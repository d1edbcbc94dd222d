import type { AttendProblem, AttentionResult } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { packedNoteBytes, packsRows } from "../common/packed_rows.js";
import type { Suspects } from "./merge.js";
import { type AttendWave, type SlotKernel, slotAttend } from "./slot_attend.js";

/** As in sm90_attend.cu: warpgroups of consumers, stages of keys and of queries, and keys of a chunk. */
interface Shape {
  readonly name: string;
  readonly warpgroups: number;
  readonly stages: number;
  readonly queryStages: number;
  readonly keys: number;
  /** Whether a block may be more than one chunk. */
  readonly chunked: boolean;
}

const SHAPES: Readonly<Record<64 | 128, readonly Shape[]>> = {
  64: [
    { name: "d64_b64", warpgroups: 4, stages: 6, queryStages: 12, keys: 64, chunked: false },
    { name: "d64_b128", warpgroups: 4, stages: 4, queryStages: 11, keys: 128, chunked: false },
    { name: "d64", warpgroups: 2, stages: 4, queryStages: 8, keys: 128, chunked: true },
  ],
  128: [
    { name: "d128_b64", warpgroups: 3, stages: 2, queryStages: 9, keys: 64, chunked: false },
    { name: "d128_b128", warpgroups: 3, stages: 2, queryStages: 6, keys: 128, chunked: false },
    { name: "d128", warpgroups: 2, stages: 2, queryStages: 4, keys: 128, chunked: true },
  ],
};

/** Rows of a work item on long lists, where they cost the least. */
const MOST_ROWS = 1536;
/** Ranges of a sequence at most: each reads the keys before it once more. */
const MOST_RANGES = 4;
/**
 * Share of the L2 that a head's queries of a range and the notes of their slots may fill: the queries are to be there still when the
 * next list asks for them, and notes, a few bytes each, are to meet their neighbours there.
 */
const RANGE_SHARE = 0.45;
/** Work items that a multiprocessor should have, at least, for none to wait for another. */
const ITEMS = 8;

/** Whether {@link sm90Attend} can attend so. */
export const sm90Attends = ({ path }: Device, { dtype, headDim, scale }: AttendProblem): boolean =>
  path === "sm90" && dtype !== "f32" && (headDim === 64 || headDim === 128) && scale > 0;

/** Routed attention on Hopper's tensor cores. */
export function sm90Attend(device: Device, problem: AttendProblem, outputs: AttentionResult): void {
  const { headDim, routing } = problem;
  const shape = SHAPES[headDim as 64 | 128].find(
    ({ keys, chunked }) => chunked || routing.blockSize <= keys,
  ) as Shape;
  const kernel: SlotKernel = {
    packed: packsRows(problem.dtype),
    mostRows(pairs) {
      // The chunks of a longer block pass by once: then each warpgroup can take one tile only.
      if (routing.blockSize > shape.stages * shape.keys) return 64 * shape.warpgroups;
      const rows = 64 * Math.ceil(pairs / (64 * ITEMS * device.multiprocessors));
      return Math.min(MOST_ROWS, Math.max(64 * shape.warpgroups, rows));
    },
    mostQueries(longest) {
      const noteBytes = packsRows(problem.dtype) ? packedNoteBytes(headDim) : 4;
      const near = (RANGE_SHARE * device.l2Bytes) / (2 * headDim + noteBytes * routing.indices.shape[2]);
      return Math.ceil(longest / Math.min(MOST_RANGES, Math.ceil(longest / near)));
    },
    attend: (wave) => attend(device, problem, shape, wave),
    repair: (ranges, suspects) => repair(device, problem, ranges, suspects, outputs),
  };
  slotAttend(device, problem, outputs, kernel);
}

function attend(device: Device, problem: AttendProblem, shape: Shape, wave: AttendWave): void {
  const { q, k, v, heads, kvHeads, headDim, scale, routing } = problem;
  const { lists, firstHead, begin, end, ticket, partial, notes } = wave;
  const dtype = problem.dtype as "f16" | "bf16";
  const row = kvHeads * headDim;
  const map = (address: number) =>
    device.tensorMap(address, dtype, [row, k.shape[0]], [2 * row], [64, shape.keys], 128);
  const args = new Arguments()
    .bytes(map(pointerOf(k)), 64)
    .bytes(map(pointerOf(v)), 64)
    .pointer(pointerOf(q))
    .pointer(lists.ranges.table)
    .pointer(lists.entries)
    .pointer(lists.items)
    .pointer(lists.phase)
    .pointer(partial)
    .pointer(notes)
    .pointer(ticket)
    .int(lists.ranges.firstToken)
    .int(lists.ranges.tokens)
    .int(heads)
    .int(heads / kvHeads)
    .int(routing.indices.shape[2])
    .int(lists.ranges.count)
    .int(lists.mostItems)
    .int(firstHead)
    .int(begin * lists.ranges.count)
    .int(end * lists.ranges.count)
    .int(routing.blockSize)
    .int(Number(routing.causal))
    .float(scale * Math.LOG2E)
    .bytes(new Uint8Array(0), 64);
  const { name, warpgroups, stages, queryStages, keys } = shape;
  const shared = (stages * 2 * keys + queryStages * 64) * 2 * headDim + 1024;
  const kernel = device.kernel("sm90_attend", `sm90_attend_${dtype}_${name}`);
  device.launch(kernel, [device.multiprocessors, 1, 1], 128 * (warpgroups + 1), shared, args);
}

const REPAIR_THREADS = 128;

function repair(
  device: Device,
  { q, k, v, dtype, heads, kvHeads, headDim, scale, routing }: AttendProblem,
  ranges: AttendWave["lists"]["ranges"],
  suspects: Suspects,
  { out, lse }: AttentionResult,
): void {
  const args = new Arguments()
    .pointer(pointerOf(q))
    .pointer(pointerOf(k))
    .pointer(pointerOf(v))
    .pointer(pointerOf(routing.indices))
    .pointer(ranges.table)
    .pointer(suspects.count)
    .pointer(suspects.rows)
    .pointer(pointerOf(out))
    .pointer(pointerOf(lse))
    .int(ranges.count)
    .int(heads)
    .int(heads / kvHeads)
    .int(routing.indices.shape[2])
    .int(routing.blockSize)
    .int(Number(routing.causal))
    .float(scale)
    .bytes(new Uint8Array(0), 8);
  const kernel = device.kernel("repair", `repair_${dtype}_d${headDim}`);
  const shared = (REPAIR_THREADS / 32) * headDim * 4;
  device.launch(kernel, [device.multiprocessors, 1, 1], REPAIR_THREADS, shared, args);
}
