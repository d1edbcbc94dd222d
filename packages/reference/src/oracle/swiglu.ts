import { silu, siluDerivative } from "./silu.js";

/** The gate of a SwiGLU layer (arXiv 2002.05202): `out = SiLU(gate) ⊙ up`. */
export function swiglu(gate: Float64Array, up: Float64Array): Float64Array {
  const out = new Float64Array(gate.length);
  for (let i = 0; i < out.length; i++) out[i] = silu(gate[i]) * up[i];
  return out;
}

/** Gradients of {@link swiglu}: `dGate = dOut ⊙ up ⊙ SiLU'(gate)`, `dUp = dOut ⊙ SiLU(gate)`. */
export function swigluBackward(
  dOut: Float64Array,
  gate: Float64Array,
  up: Float64Array,
): { dGate: Float64Array; dUp: Float64Array } {
  const dGate = new Float64Array(gate.length);
  const dUp = new Float64Array(gate.length);
  for (let i = 0; i < gate.length; i++) {
    dGate[i] = dOut[i] * up[i] * siluDerivative(gate[i]);
    dUp[i] = dOut[i] * silu(gate[i]);
  }
  return { dGate, dUp };
}
