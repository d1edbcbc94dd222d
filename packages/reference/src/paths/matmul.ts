import { transpose } from "../oracle/matmul.js";
import { scoreTile } from "./tile.js";

/** Rows of the right factor that stay in the nearest cache while all rows of the left one pass. */
const PANEL_BYTES = 128 * 1024;

/**
 * The matrix product of {@link matmul} over tiles: both factors are turned so that the summed extent is contiguous, then it
 * is all dot products. Each element is summed in order, whatever the shapes.
 */
export function matmulTiled(
  a: Float64Array,
  b: Float64Array,
  shape: { rows: number; inner: number; columns: number; transposeA: boolean; transposeB: boolean },
): Float64Array {
  const { rows, inner, columns } = shape;
  const x = shape.transposeA ? transpose(a, inner, rows) : a;
  const y = shape.transposeB ? b : transpose(b, inner, columns);
  const product = new Float64Array(rows * columns);
  const rowBegins = Int32Array.from({ length: rows }, (_, i) => i * inner);
  const panel = Math.max(4, 4 * Math.floor(PANEL_BYTES / (32 * Math.max(1, inner))));
  for (let j = 0; j < columns; j += panel) {
    const n = Math.min(panel, columns - j);
    const target = product.subarray(j);
    scoreTile(x, rowBegins, rows, y, j * inner, inner, n, inner, 1, target, columns);
  }
  return product;
}
