/** Inputs of a root-mean-square normalization in float64. */
export interface RmsNormInputs {
  /** `[T, C]` */
  readonly x: Float64Array;
  /** `w`, `[C]` */
  readonly weight: Float64Array;
  /** `ε` */
  readonly epsilon: number;
}

/** `r_t = sqrt(mean_c x_tc² + ε)` of each row. */
function rootMeanSquares({ x, weight, epsilon }: RmsNormInputs): Float64Array {
  const channels = weight.length;
  const roots = new Float64Array(channels === 0 ? 0 : x.length / channels);
  for (let t = 0; t < roots.length; t++) {
    let squares = 0;
    for (let at = t * channels; at < (t + 1) * channels; at++) squares += x[at] * x[at];
    roots[t] = Math.sqrt(squares / channels + epsilon);
  }
  return roots;
}

/** Root-mean-square normalization (arXiv 1910.07467): `out_t = w ⊙ x_t / r_t`, `r_t = sqrt(mean_c x_tc² + ε)`. */
export function rmsNorm(inputs: RmsNormInputs): Float64Array {
  const { x, weight } = inputs;
  const channels = weight.length;
  const out = new Float64Array(x.length);
  rootMeanSquares(inputs).forEach((root, t) => {
    for (let c = 0; c < channels; c++) out[t * channels + c] = (weight[c] * x[t * channels + c]) / root;
  });
  return out;
}

/**
 * Gradients of {@link rmsNorm}. With `n_t = x_t / r_t` and `g_t = w ⊙ dOut_t`: `dx_t = (g_t − n_t mean_c(g_tc n_tc)) / r_t`,
 * `dWeight = Σ_t dOut_t ⊙ n_t`.
 */
export function rmsNormBackward(inputs: RmsNormInputs & { dOut: Float64Array }): {
  dx: Float64Array;
  dWeight: Float64Array;
} {
  const { x, weight, dOut } = inputs;
  const channels = weight.length;
  const dx = new Float64Array(x.length);
  const dWeight = new Float64Array(channels);
  rootMeanSquares(inputs).forEach((root, t) => {
    const row = t * channels;
    let mean = 0;
    for (let c = 0; c < channels; c++) mean += (weight[c] * dOut[row + c] * x[row + c]) / root / channels;
    for (let c = 0; c < channels; c++) {
      const normalized = x[row + c] / root;
      dx[row + c] = (weight[c] * dOut[row + c] - normalized * mean) / root;
      dWeight[c] += dOut[row + c] * normalized;
    }
  });
  return { dx, dWeight };
}
