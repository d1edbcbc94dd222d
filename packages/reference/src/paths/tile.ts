/*
 * The inner loops of the fast paths: products of small tiles over typed arrays, several accumulators at a time so that
 * each element loaded is used more than once.
 */

/**
 * `scores[i·stride + j] = scale · x_i·y_j` for `m` rows of `x` and `n` rows of `y`, each of `d` elements.
 * @param rows where each row of `x` begins
 * @param yBegin where row 0 of `y` begins; row `j` begins `yStep` elements later each
 */
export function scoreTile(
  x: Float64Array,
  rows: Int32Array,
  m: number,
  y: Float64Array,
  yBegin: number,
  yStep: number,
  n: number,
  d: number,
  scale: number,
  scores: Float64Array,
  stride: number,
): void {
  let i = 0;
  for (; i + 2 <= m; i += 2) {
    const x0 = rows[i];
    const x1 = rows[i + 1];
    let j = 0;
    for (; j + 4 <= n; j += 4) {
      const y0 = yBegin + j * yStep;
      const y1 = y0 + yStep;
      const y2 = y1 + yStep;
      const y3 = y2 + yStep;
      let s00 = 0;
      let s01 = 0;
      let s02 = 0;
      let s03 = 0;
      let s10 = 0;
      let s11 = 0;
      let s12 = 0;
      let s13 = 0;
      for (let c = 0; c < d; c++) {
        const a = x[x0 + c];
        const b = x[x1 + c];
        const u = y[y0 + c];
        const v = y[y1 + c];
        const w = y[y2 + c];
        const z = y[y3 + c];
        s00 += a * u;
        s01 += a * v;
        s02 += a * w;
        s03 += a * z;
        s10 += b * u;
        s11 += b * v;
        s12 += b * w;
        s13 += b * z;
      }
      const at = i * stride + j;
      scores[at] = scale * s00;
      scores[at + 1] = scale * s01;
      scores[at + 2] = scale * s02;
      scores[at + 3] = scale * s03;
      scores[at + stride] = scale * s10;
      scores[at + stride + 1] = scale * s11;
      scores[at + stride + 2] = scale * s12;
      scores[at + stride + 3] = scale * s13;
    }
    for (; j < n; j++) {
      scores[i * stride + j] = scale * dot(x, x0, y, yBegin + j * yStep, d);
      scores[(i + 1) * stride + j] = scale * dot(x, x1, y, yBegin + j * yStep, d);
    }
  }
  for (; i < m; i++) {
    for (let j = 0; j < n; j++) scores[i * stride + j] = scale * dot(x, rows[i], y, yBegin + j * yStep, d);
  }
}

/** The dot product of `d` elements of `x` and `y` from the given offsets. */
export function dot(x: Float64Array, xBegin: number, y: Float64Array, yBegin: number, d: number): number {
  let sum = 0;
  for (let c = 0; c < d; c++) sum += x[xBegin + c] * y[yBegin + c];
  return sum;
}

/**
 * `out_i += factor · Σ_j weights[i·stride + j] · y_j` for `m` rows of `out` and `n` rows of `y`, each of `d` elements.
 * @param rows where each row of `out` begins
 */
export function accumulateTile(
  weights: Float64Array,
  stride: number,
  y: Float64Array,
  yBegin: number,
  yStep: number,
  n: number,
  d: number,
  factor: number,
  out: Float64Array,
  rows: Int32Array,
  m: number,
): void {
  for (let i = 0; i < m; i++) {
    const row = rows[i];
    let j = 0;
    for (; j + 8 <= n; j += 8) {
      const at = i * stride + j;
      const a = factor * weights[at];
      const b = factor * weights[at + 1];
      const e = factor * weights[at + 2];
      const f = factor * weights[at + 3];
      const g = factor * weights[at + 4];
      const h = factor * weights[at + 5];
      const k = factor * weights[at + 6];
      const l = factor * weights[at + 7];
      let y0 = yBegin + j * yStep;
      for (let c = 0; c < d; c++, y0++) {
        out[row + c] +=
          a * y[y0] +
          b * y[y0 + yStep] +
          (e * y[y0 + 2 * yStep] + f * y[y0 + 3 * yStep]) +
          (g * y[y0 + 4 * yStep] + h * y[y0 + 5 * yStep] + (k * y[y0 + 6 * yStep] + l * y[y0 + 7 * yStep]));
      }
    }
    for (; j < n; j++) {
      const a = factor * weights[i * stride + j];
      const y0 = yBegin + j * yStep;
      for (let c = 0; c < d; c++) out[row + c] += a * y[y0 + c];
    }
  }
}

/**
 * `out_j += factor · Σ_i weights[i·stride + j] · x_i`: {@link accumulateTile} with the weights transposed.
 * @param rows where each row of `x` begins
 */
export function accumulateTransposed(
  weights: Float64Array,
  stride: number,
  x: Float64Array,
  rows: Int32Array,
  m: number,
  d: number,
  factor: number,
  out: Float64Array,
  outBegin: number,
  outStep: number,
  n: number,
): void {
  for (let j = 0; j < n; j++) {
    const row = outBegin + j * outStep;
    let i = 0;
    for (; i + 4 <= m; i += 4) {
      const a = factor * weights[i * stride + j];
      const b = factor * weights[(i + 1) * stride + j];
      const e = factor * weights[(i + 2) * stride + j];
      const f = factor * weights[(i + 3) * stride + j];
      const x0 = rows[i];
      const x1 = rows[i + 1];
      const x2 = rows[i + 2];
      const x3 = rows[i + 3];
      for (let c = 0; c < d; c++) {
        out[row + c] += a * x[x0 + c] + b * x[x1 + c] + (e * x[x2 + c] + f * x[x3 + c]);
      }
    }
    for (; i < m; i++) {
      const a = factor * weights[i * stride + j];
      for (let c = 0; c < d; c++) out[row + c] += a * x[rows[i] + c];
    }
  }
}

/**
 * `exp` of scores in place: `row[j] = exp(row[j] − max)`, 0 where all are −Infinity. Returns the max and the sum; an
 * empty row gives −Infinity and 0.
 */
export function exponentiate(scores: Float64Array, begin: number, end: number): { max: number; sum: number } {
  let max = Number.NEGATIVE_INFINITY;
  for (let j = begin; j < end; j++) if (scores[j] > max) max = scores[j];
  const shift = max === Number.NEGATIVE_INFINITY ? 0 : max;
  let sum = 0;
  for (let j = begin; j < end; j++) {
    const e = Math.exp(scores[j] - shift);
    scores[j] = e;
    sum += e;
  }
  return { max, sum };
}
