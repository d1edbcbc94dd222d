import type { FloatDType, Tensor } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";

const THREADS = 128;
/** Tokens of a chunk, at least, and chunks, at most. */
const [LEAST_TOKENS, MOST_CHUNKS] = [64, 256];

/** How tokens are cut into chunks, each summed by itself first. Depends on nothing but their number. */
export function tokenChunks(tokens: number): { readonly chunk: number; readonly chunks: number } {
  const chunk = Math.max(LEAST_TOKENS, ceilDiv(tokens, MOST_CHUNKS));
  return { chunk, chunks: ceilDiv(tokens, chunk) };
}

/** Sums the columns of a float32 matrix of `rows` rows to a tensor, of which each element is one column. */
export function columnSums(device: Device, parts: number, rows: number, out: Tensor<FloatDType>): void {
  const columns = out.size;
  const args = new Arguments().pointer(parts).pointer(pointerOf(out)).int(rows).int(columns);
  const kernel = device.kernel("column_sums", `column_sums_${out.dtype}`);
  device.launch(kernel, [ceilDiv(columns, THREADS), 1, 1], THREADS, 0, args);
}
