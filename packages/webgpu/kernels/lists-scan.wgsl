// Counts of chunks become where each chunk's entries begin in their list; and the tiles that each list takes.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let list = group_index(group) * 64u + thread;
  if (list >= p.listCount) { return; }
  let head = list / p.blocks;
  let block = list % p.blocks;
  var sum = 0u;
  for (var chunk = 0u; chunk < p.chunks; chunk++) {
    let at = (head * p.chunks + chunk) * p.blocks + block;
    let count = counts[at];
    counts[at] = sum;
    sum += count;
  }
  lists[p.countsAt + list] = sum;
  lists[p.startsAt + list] = (sum + LIST_TILE - 1u) / LIST_TILE;
}
