/** `SiLU(s) = s·σ(s)`. */
export const silu = (s: number): number => s / (1 + Math.exp(-s));

/** `SiLU'(s) = σ(s)(1 + s(1 − σ(s)))`. */
export function siluDerivative(s: number): number {
  const sigmoid = 1 / (1 + Math.exp(-s));
  return sigmoid * (1 + s * (1 - sigmoid));
}
