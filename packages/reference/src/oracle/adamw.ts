/** One step of AdamW in float64. */
export interface AdamWInputs {
  /** `p`: changed. */
  readonly parameter: Float64Array;
  readonly gradient: Float64Array;
  /** Running mean of gradients: changed. */
  readonly m: Float64Array;
  /** Running mean of squared gradients: changed. */
  readonly v: Float64Array;
  /** `t`, from 1. */
  readonly step: number;
  readonly learningRate: number;
  readonly weightDecay: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  readonly gradientScale: number;
}

/**
 * AdamW (arXiv 1711.05101), in place. With `g = gradientScale · gradient`: `m ← β₁m + (1 − β₁)g`,
 * `v ← β₂v + (1 − β₂)g²`, `p ← p − η (m̂ / (sqrt(v̂) + ε) + λp)`, `m̂ = m / (1 − β₁ᵗ)`, `v̂ = v / (1 − β₂ᵗ)`.
 */
export function adamw(inputs: AdamWInputs): void {
  const { parameter, gradient, m, v, step, learningRate, weightDecay, beta1, beta2, epsilon } = inputs;
  const correction1 = 1 - beta1 ** step;
  const correction2 = 1 - beta2 ** step;
  for (let i = 0; i < parameter.length; i++) {
    const g = inputs.gradientScale * gradient[i];
    m[i] = beta1 * m[i] + (1 - beta1) * g;
    v[i] = beta2 * v[i] + (1 - beta2) * g * g;
    const direction = m[i] / correction1 / (Math.sqrt(v[i] / correction2) + epsilon);
    parameter[i] -= learningRate * (direction + weightDecay * parameter[i]);
  }
}
