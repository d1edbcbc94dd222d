// The running list of a row in a buffer: for many choices, and where it waits from one window of centroids to the next.

struct Kept {
  nothing: u32,
}

fn placeKept(tile: u32, row: u32, n: u32) -> u32 { return 2u * ((tile * KEPT + n) * BQ + row); }

fn beginKept(tile: u32, row: u32, list: ptr<function, Kept>) {
  if (p.begins == 0u) { return; }
  for (var n = 0u; n < KEPT; n++) {
    kept[placeKept(tile, row, n)] = bitcast<u32>(NO_SCORE);
    kept[placeKept(tile, row, n) + 1u] = bitcast<u32>(-1);
  }
}

fn leastKept(tile: u32, row: u32, list: ptr<function, Kept>) -> f32 {
  return bitcast<f32>(kept[placeKept(tile, row, KEPT - 1u)]);
}

// Puts a block where the list, which runs from high to low, has it; the last one leaves it.
fn insertKept(tile: u32, row: u32, score: f32, block: i32, list: ptr<function, Kept>) {
  if (score <= leastKept(tile, row, list)) { return; }
  var n = KEPT - 1u;
  while (n > 0u) {
    let before = placeKept(tile, row, n - 1u);
    if (score <= bitcast<f32>(kept[before])) { break; }
    kept[placeKept(tile, row, n)] = kept[before];
    kept[placeKept(tile, row, n) + 1u] = kept[before + 1u];
    n -= 1u;
  }
  kept[placeKept(tile, row, n)] = bitcast<u32>(score);
  kept[placeKept(tile, row, n) + 1u] = bitcast<u32>(block);
}

// The first `used` blocks of the list, from indices[at] on.
fn writeKept(tile: u32, row: u32, at: u32, used: u32, list: ptr<function, Kept>) {
  for (var n = 0u; n < used; n++) { indices[at + n] = bitcast<i32>(kept[placeKept(tile, row, n) + 1u]); }
}
