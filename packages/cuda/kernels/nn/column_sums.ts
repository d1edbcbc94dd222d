import type { FloatDType } from "@moba-js/tensor";
import { Arguments, type Device } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";

/** As in column_sums.cu. */
const [THREADS, TALL_THREADS, WARP] = [128, 1024, 32];
/** From so many rows on, threads share a column. */
const TALL = 64;
/** Tokens of a chunk, at least, and chunks, at most. */
const [LEAST_TOKENS, MOST_CHUNKS] = [64, 256];

/** How tokens are cut into chunks, each summed by itself first. Depends on nothing but their number. */
export function tokenChunks(tokens: number): { readonly chunk: number; readonly chunks: number } {
  const chunk = Math.max(LEAST_TOKENS, ceilDiv(tokens, MOST_CHUNKS));
  return { chunk, chunks: ceilDiv(tokens, chunk) };
}

/** Sums the columns of a float32 matrix `[rows, columns]` to `columns` elements of a dtype, at these addresses. */
export function columnSums(
  device: Device,
  { rows, columns, dtype }: { readonly rows: number; readonly columns: number; readonly dtype: FloatDType },
  parts: number,
  out: number,
): void {
  const args = new Arguments().pointer(parts).pointer(out).int(rows).int(columns);
  const [name, threads, width] =
    rows < TALL ? ["column_sums", THREADS, THREADS] : ["tall_column_sums", TALL_THREADS, WARP];
  const kernel = device.kernel("column_sums", `${name}_${dtype}`);
  device.launch(kernel, [ceilDiv(columns, width), 1, 1], threads, 0, args);
}
