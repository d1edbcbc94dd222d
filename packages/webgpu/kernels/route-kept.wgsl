// The running lists in workgroup memory: the KEPT best of each row, scores from high to low.

var<workgroup> keptScores: array<f32, BQ * KEPT>;
var<workgroup> keptBlocks: array<i32, BQ * KEPT>;

fn keptScore(tile: u32, row: u32, n: u32) -> f32 { return keptScores[n * BQ + row]; }
fn keptBlock(tile: u32, row: u32, n: u32) -> i32 { return keptBlocks[n * BQ + row]; }
fn keep(tile: u32, row: u32, n: u32, score: f32, block: i32) {
  keptScores[n * BQ + row] = score;
  keptBlocks[n * BQ + row] = block;
}
