/** The matrix product `C_ij = Σ_k A_ik B_kj` of `a` `[rows, inner]` and `b` `[inner, columns]`. */
export function matmul(
  a: Float64Array,
  b: Float64Array,
  { rows, inner, columns }: { rows: number; inner: number; columns: number },
): Float64Array {
  const product = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      for (let k = 0; k < inner; k++) product[i * columns + j] += a[i * inner + k] * b[k * columns + j];
    }
  }
  return product;
}

/** The transpose of a matrix `[rows, columns]`. */
export function transpose(x: Float64Array, rows: number, columns: number): Float64Array {
  const turned = new Float64Array(x.length);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) turned[j * rows + i] = x[i * columns + j];
  }
  return turned;
}
