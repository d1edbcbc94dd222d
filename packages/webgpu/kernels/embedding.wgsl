// The rows of a table that indices name; zeros where an index is no row.
fn bitsAt(i: u32) -> u32 {
  let token = i / p.channels;
  if (token >= p.tokens) { return 0u; }
  let row = u32(indices[token - p.indices_from]);
  if (row < p.firstRow || row >= p.endRow) { return 0u; }
  let at = row * p.channels + i % p.channels;
  if (PACKED) { return (table[(at >> 1u) - p.table_from] >> (16u * (at & 1u))) & 0xffffu; }
  return table[at - p.table_from];
}
