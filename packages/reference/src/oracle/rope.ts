/** Inputs of a rotary embedding in float64. */
export interface RopeInputs {
  /** `[T, H, d]`, d even */
  readonly x: Float64Array;
  /** `[T]` */
  readonly positions: Int32Array;
  readonly heads: number;
  readonly headDim: number;
  /** Base of the frequencies. */
  readonly base: number;
  /** Turn backwards. */
  readonly inverse: boolean;
}

/**
 * Rotary position embedding (arXiv 2104.09864), halves paired: channels `c` and `c + d/2` of each head turn by
 * `θ = position · base^(−2c/d)`.
 */
export function rope({ x, positions, heads, headDim, base, inverse }: RopeInputs): Float64Array {
  const half = headDim / 2;
  const frequencies = Float64Array.from({ length: half }, (_, c) => base ** ((-2 * c) / headDim));
  const out = new Float64Array(x.length);
  positions.forEach((position, t) => {
    for (let c = 0; c < half; c++) {
      const angle = (inverse ? -position : position) * frequencies[c];
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      for (let head = 0; head < heads; head++) {
        const low = (t * heads + head) * headDim + c;
        const high = low + half;
        out[low] = x[low] * cos - x[high] * sin;
        out[high] = x[low] * sin + x[high] * cos;
      }
    }
  });
  return out;
}
