import type { AttendBackwardProblem, AttentionGradients } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";
import { PACKED_ROW_THREADS } from "../common/packed_rows.js";
import type { BackwardWave } from "./slot_backward.js";

const PIECE_THREADS = 128;

/** Sums the pieces of chunks that have several, in order, to dk and dv. */
export function sumPieces(
  device: Device,
  { dtype, kvHeads, headDim, routing }: AttendBackwardProblem,
  wave: BackwardWave & { readonly pieceRanges: number },
  { dk, dv }: AttentionGradients,
): void {
  const { ranges } = wave.lists;
  const args = new Arguments()
    .pointer(wave.pieces)
    .pointer(wave.pieceRanges)
    .pointer(ranges.table)
    .pointer(pointerOf(dk))
    .pointer(pointerOf(dv))
    .int(ranges.count)
    .int(ranges.blocks)
    .int(wave.chunks.chunks)
    .int(wave.chunks.keys)
    .int(routing.blockSize)
    .int(wave.firstKvHead)
    .int(kvHeads)
    .int(headDim);
  const grid = [ranges.blocks * wave.chunks.chunks, wave.kvHeads, 1] as const;
  device.launch(device.kernel("sum_pieces", `sum_pieces_${dtype}`), grid, PIECE_THREADS, 0, args);
}

const MERGE_THREADS = 256;

/** Sums the gradients of each query's slots, in order, to dq. `packed`: as `SlotBackwardKernel` says. */
export function mergeSlots(
  device: Device,
  { dtype, heads, kvHeads, headDim, routing }: AttendBackwardProblem,
  wave: BackwardWave & { readonly packed: boolean },
  { dq }: AttentionGradients,
): void {
  const { ranges } = wave.lists;
  const rows = ranges.tokens * wave.lists.heads;
  const args = new Arguments().pointer(wave.partial);
  if (wave.packed) args.pointer(wave.steps);
  args
    .pointer(pointerOf(routing.indices))
    .pointer(pointerOf(dq))
    .int(heads)
    .int(routing.indices.shape[2])
    .int(wave.chunks.chunks)
    .int(wave.firstKvHead * (heads / kvHeads))
    .int(ranges.firstToken)
    .int(ranges.tokens)
    .int(rows)
    .bytes(new Uint8Array(0), 8);
  const file = wave.packed ? "merge_packed_slots" : "merge_slots";
  const kernel = device.kernel(file, `${file}_${dtype}_d${headDim}`);
  const rowThreads = wave.packed ? PACKED_ROW_THREADS : headDim / 8;
  device.launch(kernel, [ceilDiv(rows * rowThreads, MERGE_THREADS), 1, 1], MERGE_THREADS, 0, args);
}
