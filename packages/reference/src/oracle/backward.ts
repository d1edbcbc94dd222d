import type { BlockRouting } from "../layout.js";
import {
  type AttentionInputs,
  attentionRows,
  denseMask,
  type Mask,
  routingMask,
  windowMask,
} from "./attention.js";

/** Gradients of an attention in float64. */
export interface Gradients {
  /** `[T, H, d]` */
  readonly dq: Float64Array;
  /** `[Tk, Hkv, d]` */
  readonly dk: Float64Array;
  /** `[Tk, Hkv, d]` */
  readonly dv: Float64Array;
}

/**
 * Gradients of masked attention, by the definition. With `out_i = Σ_j p_ij v_j` and `D_i = dOut_i·out_i`:
 * `dv_j = Σ_i p_ij dOut_i`, `ds_ij = p_ij (dOut_i·v_j − D_i)`, `dq_i = scale Σ_j ds_ij k_j`, `dk_j = scale Σ_i ds_ij q_i`.
 * `round`, when given, rounds each `p_ij`, each `ds_ij` and the results.
 * @param inputs.dOut gradient of `out`, `[T, H, d]`
 */
export function maskedAttentionBackward(
  inputs: AttentionInputs & { dOut: Float64Array },
  mask: Mask,
): Gradients {
  const { q, k, v, dOut, headDim, scale, round = (x: number) => x } = inputs;
  const dq = new Float64Array(q.length);
  const dk = new Float64Array(k.length);
  const dv = new Float64Array(v.length);
  for (const { row, visible, probabilities } of attentionRows(inputs, mask)) {
    const at = row * headDim;
    const dp = visible.map((offset) => {
      let dot = 0;
      for (let c = 0; c < headDim; c++) dot += dOut[at + c] * v[offset + c];
      return dot;
    });
    // D_i = dOut_i · Σ_j p_ij v_j = Σ_j p_ij (dOut_i · v_j)
    const D = probabilities.reduce((sum, p, j) => sum + p * dp[j], 0);
    visible.forEach((offset, j) => {
      const p = round(probabilities[j]);
      const ds = round(probabilities[j] * (dp[j] - D));
      for (let c = 0; c < headDim; c++) {
        dv[offset + c] += p * dOut[at + c];
        dq[at + c] += scale * ds * k[offset + c];
        dk[offset + c] += scale * ds * q[at + c];
      }
    });
  }
  return { dq: dq.map(round), dk: dk.map(round), dv: dv.map(round) };
}

/** Gradients of `attendBlocks`, exact for the given routing; none flows through the selection. */
export const attendBlocksBackward = (
  inputs: AttentionInputs & { dOut: Float64Array; routing: BlockRouting },
): Gradients => maskedAttentionBackward(inputs, routingMask(inputs.routing, inputs));

/** Gradients of `denseAttention`. */
export const denseAttentionBackward = (
  inputs: AttentionInputs & { dOut: Float64Array; causal: boolean },
): Gradients => maskedAttentionBackward(inputs, denseMask(inputs.causal));

/** Gradients of `windowAttention`. */
export const windowAttentionBackward = (
  inputs: AttentionInputs & { dOut: Float64Array; window: number },
): Gradients => maskedAttentionBackward(inputs, windowMask(inputs.window));
