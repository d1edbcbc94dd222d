import type { AttendProblem, AttentionResult } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";

/**
 * Partial outputs, one for each slot of some rows. Rows are head-major: row number
 * `(head − firstHead) · tokens + token − firstToken`.
 */
export interface PartialOutputs {
  /** Addresses of `[rows, slots]`: rows of d elements, and what is noted of each, as `SlotKernel.packed` says. */
  readonly partial: number;
  readonly notes: number;
  readonly firstHead: number;
  readonly firstToken: number;
  readonly tokens: number;
  /** The rows that are there. */
  readonly rows: number;
  /** Where to list the rows that come out not finite, of 64 or 128 channels. Default: nowhere. */
  readonly suspects?: Suspects;
}

/** Addresses of a count, zero before, and of so many rows `token · H + head`. */
export interface Suspects {
  readonly count: number;
  readonly rows: number;
}

const THREADS = 256;
/** Elements that a thread merges. */
const ELEMENTS = 8;

/**
 * Merges partial outputs of 2-byte elements: `out = Σ_s 2^(lse_s − L) · partial_s`, `L = log2 Σ_s 2^lse_s`,
 * `lse = L · ln 2`. A row without keys is zero, its lse −Infinity.
 */
export function merge(
  device: Device,
  { dtype, heads, headDim, routing }: AttendProblem,
  partials: PartialOutputs,
  outputs: AttentionResult,
): void {
  const threads = (partials.rows * headDim) / ELEMENTS;
  const kernel = device.kernel("merge", `merge_${dtype}_d${headDim}`);
  const args = mergeArguments(heads, routing, partials, outputs);
  device.launch(kernel, [ceilDiv(threads, THREADS), 1, 1], THREADS, 0, args);
}

/** The `MergeArguments` of merge.cu and merge_packed.cu. */
export function mergeArguments(
  heads: number,
  routing: AttendProblem["routing"],
  { partial, notes, firstHead, firstToken, tokens, rows, suspects }: PartialOutputs,
  { out, lse }: AttentionResult,
): Arguments {
  return new Arguments()
    .pointer(partial)
    .pointer(notes)
    .pointer(pointerOf(routing.indices))
    .pointer(pointerOf(out))
    .pointer(pointerOf(lse))
    .pointer(suspects?.count ?? 0)
    .pointer(suspects?.rows ?? 0)
    .int(heads)
    .int(routing.indices.shape[2])
    .int(firstHead)
    .int(firstToken)
    .int(tokens)
    .int(rows)
    .bytes(new Uint8Array(0), 8);
}
