/** Whether an index is a row of a table of `rows` rows. */
const isRow = (index: number, rows: number): boolean => index >= 0 && index < rows;

/** The rows of a table `[V, C]`: `out_t = table[indices_t]`, zeros where the index is no row. */
export function embedding(table: Float64Array, indices: Int32Array, channels: number): Float64Array {
  const out = new Float64Array(indices.length * channels);
  indices.forEach((index, t) => {
    if (!isRow(index, table.length / channels)) return;
    out.set(table.subarray(index * channels, (index + 1) * channels), t * channels);
  });
  return out;
}

/** Gradient of {@link embedding}: `dTable_v = Σ_{t: indices_t = v} dOut_t`, `[rows, C]`. */
export function embeddingBackward(
  dOut: Float64Array,
  indices: Int32Array,
  { rows, channels }: { rows: number; channels: number },
): Float64Array {
  const dTable = new Float64Array(rows * channels);
  indices.forEach((index, t) => {
    if (!isRow(index, rows)) return;
    for (let c = 0; c < channels; c++) dTable[index * channels + c] += dOut[t * channels + c];
  });
  return dTable;
}
