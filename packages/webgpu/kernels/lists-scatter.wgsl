// Writes the entries of each chunk of rows into their lists, in order, and marks the slots that no list fills as unused. TURN_ROWS rows are
// ranked at a time: which of them chose a block is one word of workgroup memory, so an entry's rank is a count of bits. (No row has a block
// twice.) Blocks come TABLE at a time.

const THREADS = 256u;

var<workgroup> choosers: array<atomic<u32>, TABLE>; // rows of the turn, as bits
var<workgroup> places: array<u32, TABLE>; // where a block's next entry goes

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let head = index / p.chunks;
  let first = (index % p.chunks) * p.chunkEntries;
  let last = min(first + p.chunkEntries, p.waveRows * SLOTS);
  for (var low = 0u; low < max(1u, p.blocks); low += TABLE) {
    let size = min(TABLE, p.blocks - low);
    for (var block = thread; block < size; block += THREADS) {
      atomicStore(&choosers[block], 0u);
      let list = head * p.blocks + low + block;
      places[block] = p.entriesAt + lists[p.startsAt + list] * LIST_TILE + counts[index * p.blocks + low + block];
    }
    var blocks: array<u32, EACH>;
    @unroll for (var n = 0u; n < EACH; n++) { blocks[n] = blockAt(first, n * THREADS + thread, last, head, low); }
    workgroupBarrier();
    for (var begin = first; begin < last; begin += TURN_ROWS * SLOTS) {
      @unroll for (var n = 0u; n < EACH; n++) {
        if (blocks[n] < size) { atomicOr(&choosers[blocks[n]], 1u << ((n * THREADS + thread) / SLOTS)); }
      }
      var next: array<u32, EACH>;
      @unroll for (var n = 0u; n < EACH; n++) {
        next[n] = blockAt(begin + TURN_ROWS * SLOTS, n * THREADS + thread, last, head, low);
      }
      workgroupBarrier();
      var ends: array<u32, EACH>; // the block's next place, where the row is the last that chose it
      @unroll for (var n = 0u; n < EACH; n++) {
        let row = (n * THREADS + thread) / SLOTS;
        ends[n] = 0u;
        if (blocks[n] < size) {
          let rows = atomicLoad(&choosers[blocks[n]]);
          let place = places[blocks[n]] + countOneBits(rows & ((1u << row) - 1u));
          lists[place] = begin + n * THREADS + thread + 1u;
          if ((rows >> row) == 1u) { ends[n] = place + 1u; }
        }
      }
      workgroupBarrier();
      @unroll for (var n = 0u; n < EACH; n++) {
        if (ends[n] > 0u) {
          places[blocks[n]] = ends[n];
          atomicStore(&choosers[blocks[n]], 0u);
        }
        blocks[n] = next[n];
      }
      workgroupBarrier();
    }
  }
}

// The block of an entry of a turn, counted from the table's first; beyond the table where it has none there.
fn blockAt(begin: u32, offset: u32, last: u32, head: u32, low: u32) -> u32 {
  let entry = begin + offset;
  if (offset >= TURN_ROWS * SLOTS || entry >= last) { return NONE; }
  let block = chosenBlock(entry, p.firstHead + head);
  let row = head * p.waveRows + entry / SLOTS;
  if (block == NONE) { markUnused(row, entry % SLOTS); }
  if (OWN_PLACE && entry % SLOTS == 0u) { markUnused(row, SLOTS); }
  return block - low;
}
