// The result of a row.
fn writeRow(
  tx: u32, row: u32, item: Item, seen: bool, i: u32,
  maximum: f32, sum: f32, out: ptr<function, array<vec4<f32>, RQ * CQ>>,
) {
  writeFinal(tx, row, seen, i, maximum, sum, out);
}
