import type { AttentionBackwardProblem } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";

/** Tokens and threads of a CTA: as in row_terms.cu. */
const [TOKENS, THREADS] = [128, 128];

/**
 * Writes what gradients take from each query's row to `terms`, float32 `[H, T, 2]`: `lse · log2(e)` and `D = dOut·out`. For elements
 * of 2 bytes and a head dimension that is a multiple of 8.
 */
export function computeRowTerms(device: Device, problem: AttentionBackwardProblem, terms: number): void {
  const { dOut, out, lse, dtype, tokens, heads, headDim } = problem;
  const args = new Arguments()
    .pointer(pointerOf(dOut))
    .pointer(pointerOf(out))
    .pointer(pointerOf(lse))
    .pointer(terms)
    .int(tokens)
    .int(heads)
    .int(headDim);
  const kernel = device.kernel("row_terms", `row_terms_${dtype}`);
  device.launch(kernel, [ceilDiv(tokens, TOKENS), heads, 1], THREADS, 0, args);
}
