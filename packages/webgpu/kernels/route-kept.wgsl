// The running list of a row in registers.

struct Kept {
  scores: array<f32, KEPT>,
  blocks: array<i32, KEPT>,
}

fn beginKept(tile: u32, row: u32, list: ptr<function, Kept>) {
  @unroll for (var n = 0u; n < KEPT; n++) {
    (*list).scores[n] = NO_SCORE;
    (*list).blocks[n] = -1;
  }
}

fn leastKept(tile: u32, row: u32, list: ptr<function, Kept>) -> f32 { return (*list).scores[KEPT - 1u]; }

// Puts a block where the list, which runs from high to low, has it; the last one leaves it.
fn insertKept(tile: u32, row: u32, score: f32, block: i32, list: ptr<function, Kept>) {
  var nextScore = score;
  var nextBlock = block;
  @unroll for (var n = 0u; n < KEPT; n++) {
    let hereScore = (*list).scores[n];
    let hereBlock = (*list).blocks[n];
    let isAfter = score > hereScore;
    (*list).scores[n] = select(hereScore, nextScore, isAfter);
    (*list).blocks[n] = select(hereBlock, nextBlock, isAfter);
    nextScore = select(nextScore, hereScore, isAfter);
    nextBlock = select(nextBlock, hereBlock, isAfter);
  }
}

// The first `used` blocks of the list, from indices[at] on.
fn writeKept(tile: u32, row: u32, at: u32, used: u32, list: ptr<function, Kept>) {
  @unroll for (var n = 0u; n < KEPT; n++) {
    if (n < used) { indices[at + n] = (*list).blocks[n]; }
  }
}
