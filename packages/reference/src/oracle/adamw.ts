/** A parameter of a step of AdamW, in float64. */
export interface AdamWParameterInputs {
  /** `p`: changed. */
  readonly parameter: Float64Array;
  readonly gradient: Float64Array;
  /** Running mean of gradients: changed. */
  readonly m: Float64Array;
  /** Running mean of squared gradients: changed. */
  readonly v: Float64Array;
  readonly weightDecay: number;
}

/** One step of AdamW in float64. */
export interface AdamWInputs {
  readonly parameters: readonly AdamWParameterInputs[];
  /** `t`, from 1. */
  readonly step: number;
  readonly learningRate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  readonly clipNorm: number;
}

/**
 * AdamW (arXiv 1711.05101) over all parameters, in place. With `ĝ = g min(1, clipNorm / ‖g‖)`, `‖g‖` over all gradients:
 * `m ← β₁m + (1 − β₁)ĝ`, `v ← β₂v + (1 − β₂)ĝ²`, `p ← p − η (m̂ / (sqrt(v̂) + ε) + λp)`, `m̂ = m / (1 − β₁ᵗ)`,
 * `v̂ = v / (1 − β₂ᵗ)`. Nothing changes when `‖g‖` is not finite.
 * @returns `‖g‖`
 */
export function adamw(inputs: AdamWInputs): number {
  const { parameters, step, learningRate, beta1, beta2, epsilon, clipNorm } = inputs;
  let squares = 0;
  for (const { gradient } of parameters) for (const g of gradient) squares += g * g;
  const norm = Math.sqrt(squares);
  if (!Number.isFinite(norm)) return norm;
  const scale = norm > clipNorm ? clipNorm / norm : 1;
  const correction1 = 1 - beta1 ** step;
  const correction2 = 1 - beta2 ** step;
  for (const { parameter, gradient, m, v, weightDecay } of parameters) {
    for (let i = 0; i < parameter.length; i++) {
      const g = scale * gradient[i];
      m[i] = beta1 * m[i] + (1 - beta1) * g;
      v[i] = beta2 * v[i] + (1 - beta2) * g * g;
      const direction = m[i] / correction1 / (Math.sqrt(v[i] / correction2) + epsilon);
      parameter[i] -= learningRate * (direction + weightDecay * parameter[i]);
    }
  }
  return norm;
}
