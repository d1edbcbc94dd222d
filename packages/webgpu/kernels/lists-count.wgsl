// How many entries of each chunk of rows are in each list: counts[(head · chunks + chunk) · blocks + block]. They are counted in workgroup
// memory, TABLE blocks at a time.

const THREADS = 256u;

var<workgroup> found: array<atomic<u32>, TABLE>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let first = (index % p.chunks) * p.chunkEntries;
  let last = min(first + p.chunkEntries, p.waveRows * SLOTS);
  for (var low = 0u; low < p.blocks; low += TABLE) {
    let size = min(TABLE, p.blocks - low);
    for (var block = thread; block < size; block += THREADS) { atomicStore(&found[block], 0u); }
    workgroupBarrier();
    for (var entry = first + thread; entry < last; entry += THREADS) {
      let block = chosenBlock(entry, p.firstHead + index / p.chunks) - low; // of no block: beyond every table
      if (block < size) { atomicAdd(&found[block], 1u); }
    }
    workgroupBarrier();
    for (var block = thread; block < size; block += THREADS) {
      counts[index * p.blocks + low + block] = atomicLoad(&found[block]);
    }
    workgroupBarrier();
  }
}
