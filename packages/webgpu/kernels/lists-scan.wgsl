// Counts of chunks become where each chunk's entries begin in their list; and the tiles that each list takes.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let list = group_index(group) * 64u + thread;
  if (list >= p.listCount) { return; }
  let head = list / p.blocks;
  let block = list % p.blocks;
  var sum = 0u;
  // Eight at a time, so that their reads need not wait for the writes before them.
  for (var chunk = 0u; chunk < p.chunks; chunk += 8u) {
    var found: array<u32, 8>;
    for (var n = 0u; n < 8u; n++) {
      found[n] = 0u;
      if (chunk + n < p.chunks) { found[n] = counts[(head * p.chunks + chunk + n) * p.blocks + block]; }
    }
    for (var n = 0u; n < 8u; n++) {
      if (chunk + n < p.chunks) { counts[(head * p.chunks + chunk + n) * p.blocks + block] = sum; }
      sum += found[n];
    }
  }
  lists[p.countsAt + list] = sum;
  lists[p.startsAt + list] = max(p.leastTiles, (sum + LIST_TILE - 1u) / LIST_TILE);
}
