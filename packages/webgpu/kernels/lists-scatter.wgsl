// Writes the entries of each chunk of rows into their lists, in order, and marks the slots that no list fills as unused.

const THREADS = 64u;
const EACH = 4u; // entries that a thread ranks
const ENTRIES = EACH * THREADS; // ranked at a time

var<workgroup> blockOf: array<vec4<u32>, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let head = index / p.chunks;
  let all = p.waveRows * p.slots;
  let first = (index % p.chunks) * p.chunkEntries;
  let last = min(first + p.chunkEntries, all);
  for (var begin = first; begin < last; begin += ENTRIES) {
    // The thread's entries are neighbours.
    var four: vec4<u32>;
    @unroll for (var n = 0u; n < 4u; n++) {
      let entry = begin + EACH * thread + n;
      four[n] = NONE;
      if (entry < last) {
        four[n] = chosenBlock(entry, p.firstHead + head);
        let row = head * p.waveRows + entry / p.slots;
        let slot = entry % p.slots;
        if (four[n] == NONE) { slots[(row * p.places + slot) * (DQ + 1u) + DQ] = vec4<f32>(); }
        if (slot == 0u && p.places > p.slots) { slots[(row * p.places + p.slots) * (DQ + 1u) + DQ] = vec4<f32>(); }
      }
    }
    blockOf[thread] = four;
    workgroupBarrier();
    // How many of the entries here are of the same block: before the thread's four, among them before each, and after each.
    var rank = vec4<u32>();
    var after = vec4<u32>();
    for (var other = 0u; other < THREADS; other++) {
      let theirs = blockOf[other];
      let same = sameAs(four, theirs.x) + sameAs(four, theirs.y) + sameAs(four, theirs.z) + sameAs(four, theirs.w);
      rank += select(vec4<u32>(), same, other < thread);
      after += select(vec4<u32>(), same, other > thread);
    }
    rank += vec4<u32>(0u, vec3<u32>(four.yzw == four.xxx)) + vec4<u32>(0u, 0u, vec2<u32>(four.zw == four.yy));
    rank.w += u32(four.w == four.z);
    after += vec4<u32>(vec3<u32>(four.xyz == four.www), 0u) + vec4<u32>(vec2<u32>(four.xy == four.zz), 0u, 0u);
    after.x += u32(four.x == four.y);
    // What the block's count will be, where the entry is the last of its block here.
    var ends = vec4<u32>();
    @unroll for (var n = 0u; n < 4u; n++) {
      if (four[n] != NONE) {
        let offset = counts[index * p.blocks + four[n]] + rank[n];
        let start = lists[p.startsAt + head * p.blocks + four[n]] * LIST_TILE;
        lists[p.entriesAt + start + offset] = begin + EACH * thread + n + 1u;
        if (after[n] == 0u) { ends[n] = offset + 1u; }
      }
    }
    storageBarrier();
    workgroupBarrier();
    @unroll for (var n = 0u; n < 4u; n++) {
      if (ends[n] > 0u) { counts[index * p.blocks + four[n]] = ends[n]; }
    }
    storageBarrier();
    workgroupBarrier();
  }
}

fn sameAs(four: vec4<u32>, block: u32) -> vec4<u32> { return vec4<u32>(four == vec4<u32>(block)); }
