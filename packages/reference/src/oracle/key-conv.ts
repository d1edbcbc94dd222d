import type { CuSeqlens } from "@moba-js/tensor";
import { silu, siluDerivative } from "./silu.js";

/** Inputs of the key convolution in float64. */
export interface KeyConvInputs {
  /** Keys `[T, Hkv, d]`. */
  readonly k: Float64Array;
  /** Weights `[W, Hkv, d]`. */
  readonly weights: Float64Array;
  /** `W`. */
  readonly width: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly cuSeqlens: CuSeqlens;
  /** The `W−1` keys before each sequence, `[batch, W−1, Hkv, d]`, oldest first. Default: zeros. */
  readonly history?: Float64Array;
}

/** Channel `c` of the key `lag` tokens before token `t` of sequence `s`; history or zero before the sequence begins. */
function keyBefore(
  inputs: Omit<KeyConvInputs, "weights">,
  s: number,
  t: number,
  lag: number,
  c: number,
): number {
  const { k, width, kvHeads, headDim, cuSeqlens, history } = inputs;
  const channels = kvHeads * headDim;
  if (t >= lag) return k[(cuSeqlens[s] + t - lag) * channels + c];
  return history ? history[(s * (width - 1) + width - 1 + t - lag) * channels + c] : 0;
}

/** `s_t = Σ_{l=0}^{W−1} w_l ⊙ k_{t−l}`, channel `c`. */
function weightedSum(inputs: KeyConvInputs, s: number, t: number, c: number): number {
  const { weights, width, kvHeads, headDim } = inputs;
  let sum = 0;
  for (let lag = 0; lag < width; lag++)
    sum += weights[lag * kvHeads * headDim + c] * keyBefore(inputs, s, t, lag, c);
  return sum;
}

/** Visits every (sequence, token within it, channel). */
function forEachElement(
  { cuSeqlens, kvHeads, headDim }: KeyConvInputs,
  visit: (sequence: number, token: number, channel: number, index: number) => void,
): void {
  const channels = kvHeads * headDim;
  for (let s = 0; s + 1 < cuSeqlens.length; s++) {
    for (let t = 0; t < cuSeqlens[s + 1] - cuSeqlens[s]; t++) {
      for (let c = 0; c < channels; c++) visit(s, t, c, (cuSeqlens[s] + t) * channels + c);
    }
  }
}

/**
 * Key convolution (arXiv 2511.11571, section 3 and appendix): `k'_t = k_t + SiLU(Σ_{l=0}^{W−1} w_l ⊙ k_{t−l})`, depthwise, each sequence by
 * itself.
 * @returns `[T, Hkv, d]`
 */
export function keyConv(inputs: KeyConvInputs): Float64Array {
  const out = new Float64Array(inputs.k.length);
  forEachElement(inputs, (s, t, c, at) => {
    out[at] = inputs.k[at] + silu(weightedSum(inputs, s, t, c));
  });
  return out;
}

/**
 * Gradients of {@link keyConv} without history. With `g_t = dOut_t ⊙ SiLU'(s_t)`:
 * `dk_t = dOut_t + Σ_l w_l ⊙ g_{t+l}`, `dw_l = Σ_t g_t ⊙ k_{t−l}`.
 * @param inputs.dOut gradient of the result, `[T, Hkv, d]`
 */
export function keyConvBackward(inputs: Omit<KeyConvInputs, "history"> & { dOut: Float64Array }): {
  dk: Float64Array;
  dWeights: Float64Array;
} {
  const { weights, width, kvHeads, headDim, dOut } = inputs;
  const channels = kvHeads * headDim;
  const dk = Float64Array.from(dOut);
  const dWeights = new Float64Array(weights.length);
  forEachElement(inputs, (s, t, c, at) => {
    const g = dOut[at] * siluDerivative(weightedSum(inputs, s, t, c));
    for (let lag = 0; lag < width && lag <= t; lag++) {
      dk[at - lag * channels] += weights[lag * channels + c] * g;
      dWeights[lag * channels + c] += g * keyBefore(inputs, s, t, lag, c);
    }
  });
  return { dk, dWeights };
}

/** The history for the tokens after these: each sequence's last `W−1` keys, `[batch, W−1, Hkv, d]`, oldest first. */
export function keyConvHistory(inputs: Omit<KeyConvInputs, "weights">): Float64Array {
  const { width, kvHeads, headDim, cuSeqlens } = inputs;
  const channels = kvHeads * headDim;
  const next = new Float64Array((cuSeqlens.length - 1) * (width - 1) * channels);
  for (let s = 0; s + 1 < cuSeqlens.length; s++) {
    const length = cuSeqlens[s + 1] - cuSeqlens[s];
    for (let r = 0; r < width - 1; r++) {
      for (let c = 0; c < channels; c++) {
        // Slot r holds the key W−1−r tokens before the next one, token `length`.
        next[(s * (width - 1) + r) * channels + c] = keyBefore(inputs, s, length, width - 1 - r, c);
      }
    }
  }
  return next;
}
