// The running lists in a buffer, for more choices than workgroup memory has room for.

fn keptScore(tile: u32, row: u32, n: u32) -> f32 { return bitcast<f32>(kept[2u * ((tile * KEPT + n) * BQ + row)]); }
fn keptBlock(tile: u32, row: u32, n: u32) -> i32 { return bitcast<i32>(kept[2u * ((tile * KEPT + n) * BQ + row) + 1u]); }
fn keep(tile: u32, row: u32, n: u32, score: f32, block: i32) {
  kept[2u * ((tile * KEPT + n) * BQ + row)] = bitcast<u32>(score);
  kept[2u * ((tile * KEPT + n) * BQ + row) + 1u] = bitcast<u32>(block);
}
