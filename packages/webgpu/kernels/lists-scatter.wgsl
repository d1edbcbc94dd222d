// Writes the entries of each chunk of rows into their lists, in order, and marks the slots that no list fills as unused.

const THREADS = 64u;
const ENTRIES = 256u; // ranked at a time

var<workgroup> blockOf: array<u32, ENTRIES>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let head = index / p.chunks;
  let all = p.waveRows * p.slots;
  let first = (index % p.chunks) * p.chunkEntries;
  let last = min(first + p.chunkEntries, all);
  for (var begin = first; begin < last; begin += ENTRIES) {
    for (var i = thread; i < ENTRIES; i += THREADS) {
      var block = NONE;
      if (begin + i < last) {
        block = chosenBlock(begin + i, p.firstHead + head);
        let row = head * p.waveRows + (begin + i) / p.slots;
        let slot = (begin + i) % p.slots;
        if (block == NONE) { slots[(row * p.places + slot) * (DQ + 1u) + DQ] = vec4<f32>(); }
        if (slot == 0u && p.places > p.slots) { slots[(row * p.places + p.slots) * (DQ + 1u) + DQ] = vec4<f32>(); }
      }
      blockOf[i] = block;
    }
    workgroupBarrier();
    // The entry's rank among those of its block here, and whether it is the last of them.
    var ends: array<u32, ENTRIES / THREADS>;
    for (var n = 0u; n < ENTRIES / THREADS; n++) {
      let i = n * THREADS + thread;
      let block = blockOf[i];
      ends[n] = 0u;
      if (block == NONE) { continue; }
      var rank = 0u;
      for (var before = 0u; before < i; before++) { rank += u32(blockOf[before] == block); }
      var isLast = true;
      for (var after = i + 1u; after < ENTRIES; after++) { isLast = isLast && blockOf[after] != block; }
      let offset = counts[index * p.blocks + block] + rank;
      let start = lists[p.startsAt + head * p.blocks + block] * LIST_TILE;
      lists[p.entriesAt + start + offset] = begin + i + 1u;
      if (isLast) { ends[n] = offset + 1u; }
    }
    storageBarrier();
    workgroupBarrier();
    for (var n = 0u; n < ENTRIES / THREADS; n++) {
      if (ends[n] > 0u) { counts[index * p.blocks + blockOf[n * THREADS + thread]] = ends[n]; }
    }
    storageBarrier();
    workgroupBarrier();
  }
}
