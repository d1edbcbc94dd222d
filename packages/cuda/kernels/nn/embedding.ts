import { bytesPerElement, type FloatDType, type Tensor } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";
import { invert } from "../route/invert.js";
import type { Ranges } from "../route/ranges.js";

const THREADS = 128;
/** Columns that a CTA takes. */
const COLUMNS = THREADS * 8;

/** `Backend.embedding`. */
export function embedding(
  device: Device,
  { table, indices }: { table: Tensor<FloatDType>; indices: Tensor<"i32"> },
  out: Tensor<FloatDType>,
): void {
  const [rows, channels] = table.shape;
  const args = new Arguments()
    .pointer(pointerOf(table))
    .pointer(pointerOf(indices))
    .pointer(pointerOf(out))
    .int(rows)
    .int(channels);
  const kernel = device.kernel("embedding", `embedding_${table.dtype}`);
  device.launch(kernel, [indices.size, ceilDiv(channels, COLUMNS), 1], THREADS, 0, args);
}

/** All tokens as one range whose blocks are the rows of a table. */
function tokensOverRows(device: Device, tokens: number, rows: number): Ranges {
  const table = device.constant(Int32Array.of(0, tokens, 0, rows, 0, rows, 0, 0));
  return { table, count: 1, longest: tokens, blocks: rows, mostBlocks: rows, firstToken: 0, tokens };
}

/** `Backend.embeddingBackward`: the tokens of each row are listed in order, then summed. */
export function embeddingBackward(
  device: Device,
  { dOut, indices }: { dOut: Tensor<FloatDType>; indices: Tensor<"i32"> },
  dTable: Tensor<FloatDType>,
): void {
  const [rows, channels] = dTable.shape;
  const tokens = indices.size;
  if (tokens === 0) {
    device.fill(pointerOf(dTable), dTable.size * bytesPerElement(dTable.dtype), 0);
    return;
  }
  using checked = device.scratch(4 * tokens);
  const check = new Arguments().pointer(pointerOf(indices)).pointer(checked.pointer).int(tokens).int(rows);
  const file = "embedding_backward";
  device.launch(device.kernel(file, "embedding_rows"), [ceilDiv(tokens, THREADS), 1, 1], THREADS, 0, check);

  const routing = { indices: checked.pointer, heads: 1, slots: 1, mostRows: 2 ** 30 };
  using lists = invert(device, routing, tokensOverRows(device, tokens, rows));
  const args = new Arguments()
    .pointer(pointerOf(dOut))
    .pointer(lists.counts)
    .pointer(lists.starts)
    .pointer(lists.entries)
    .pointer(pointerOf(dTable))
    .int(channels);
  const kernel = device.kernel(file, `embedding_backward_${dOut.dtype}`);
  device.launch(kernel, [rows, ceilDiv(channels, COLUMNS), 1], THREADS, 0, args);
}
