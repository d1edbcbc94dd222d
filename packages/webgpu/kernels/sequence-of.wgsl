// The sequence that token t of a packed batch belongs to: the last that begins at or before it. starts: cumulative lengths.
fn sequenceOf(t: u32) -> u32 {
  var low = 0u;
  var high = p.sequences;
  while (high - low > 1u) {
    let middle = (low + high) / 2u;
    if (starts[middle] <= t) { low = middle; } else { high = middle; }
  }
  return low;
}
