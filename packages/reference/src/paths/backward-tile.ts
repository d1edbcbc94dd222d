import type { AttentionInputs } from "../oracle/attention.js";
import type { Gradients } from "../oracle/backward.js";
import { accumulateTile, accumulateTransposed, dot, scoreTile } from "./tile.js";

/** What the blocked gradients of an attention are made of, in float64. */
export interface BackwardInputs extends AttentionInputs {
  /** Result of the forward pass, `[T, H, d]`. */
  readonly out: Float64Array;
  /** Result of the forward pass, `[T, H]`. */
  readonly lse: Float64Array;
  /** Gradient of `out`, `[T, H, d]`. */
  readonly dOut: Float64Array;
}

/** Adds what one tile gives to the gradients: `m` query rows, beginning at `rows`, against `n` keys from `begin`. */
export type BackwardTile = (rows: Int32Array, m: number, begin: number, n: number) => void;

/**
 * Gradients that grow tile by tile, probabilities recomputed from `lse`; equations as in `maskedAttentionBackward`.
 * @param tileSize the most elements, `m·n`, of a tile
 */
export function backwardTiles(
  inputs: BackwardInputs,
  tileSize: number,
): { gradients: Gradients; tile: BackwardTile } {
  const { q, k, v, out, lse, dOut, kvHeads, headDim: d, scale } = inputs;
  const step = kvHeads * d;
  const dq = new Float64Array(q.length);
  const dk = new Float64Array(k.length);
  const dv = new Float64Array(v.length);
  const p = new Float64Array(tileSize);
  const ds = new Float64Array(tileSize);
  const tile: BackwardTile = (rows, m, begin, n) => {
    scoreTile(q, rows, m, k, begin, step, n, d, scale, p, n);
    scoreTile(dOut, rows, m, v, begin, step, n, d, 1, ds, n);
    for (let r = 0; r < m; r++) {
      const D = dot(dOut, rows[r], out, rows[r], d);
      for (let j = r * n; j < (r + 1) * n; j++) {
        p[j] = Math.exp(p[j] - lse[rows[r] / d]);
        ds[j] = p[j] * (ds[j] - D);
      }
    }
    accumulateTransposed(p, n, dOut, rows, m, d, 1, dv, begin, step, n);
    accumulateTransposed(ds, n, q, rows, m, d, scale, dk, begin, step, n);
    accumulateTile(ds, n, k, begin, step, n, d, scale, dq, rows, m);
  };
  return { gradients: { dq, dk, dv }, tile };
}
