// How many entries of each chunk of rows are in each list: counts[(head · chunks + chunk) · blocks + block].

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let first = (index % p.chunks) * p.chunkEntries;
  let last = min(first + p.chunkEntries, p.waveRows * p.slots);
  for (var entry = first + thread; entry < last; entry += 64u) {
    let block = chosenBlock(entry, p.firstHead + index / p.chunks);
    if (block != NONE) { atomicAdd(&counts[index * p.blocks + block], 1u); }
  }
}
