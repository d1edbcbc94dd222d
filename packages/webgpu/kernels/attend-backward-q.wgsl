// dq of the queries of one tile of a block's list over the block's keys, each into its slot.

var<workgroup> entryOf: array<u32, BQ>;

@compute @workgroup_size(NX * TY)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tile = group_index(group);
  if (tile >= lists[p.startsAt + p.listCount]) { return; }
  let list = lists[p.tilesAt + tile];
  let head = list / p.blocks;
  let block = list % p.blocks;
  let sequence = sequenceOf(block, 4u);
  let key = (block - sequence.firstBlock) * p.blockSize;
  let keys = i32(min(p.blockSize, sequence.keys - key));
  let tx = thread % NX;
  let ty = thread / NX;
  for (var r = thread; r < BQ; r += THREADS) { entryOf[r] = lists[p.entriesAt + tile * BQ + r]; }
  workgroupBarrier();
  for (var at = thread; at < BQ * DQ; at += THREADS) {
    let entry = entryOf[at / DQ];
    loadQuery(at / DQ, at % DQ, queryRow(max(entry, 1u) - 1u, head), entry > 0u);
  }

  var low: array<i32, RQ>;
  var high: array<i32, RQ>;
  var rowStats: array<vec2<f32>, RQ>;
  var sums: array<vec4<f32>, RQ * CQ>;
  for (var i = 0u; i < RQ; i++) {
    high[i] = keys;
    rowStats[i] = stats[queryRow(max(entryOf[ty + TY * i], 1u) - 1u, head)];
  }
  let begin = ((sequence.key + key) * p.kvHeads + p.firstHead + head) * p.d;
  gradientOverKeys(tx, ty, begin, p.kvHeads * p.d, 0, keys, 0, keys, &low, &high, &rowStats, &sums);

  for (var i = 0u; i < RQ; i++) {
    let entry = entryOf[ty + TY * i];
    if (entry == 0u) { continue; }
    let slot = (head * p.waveRows * p.slots + entry - 1u) * (DQ + 1u);
    for (var n = 0u; n < CQ; n++) {
      let c = tx + NX * n;
      if (c < DQ) { slots[slot + c] = sums[i * CQ + n]; }
    }
    if (tx == 0u) { slots[slot + DQ] = vec4<f32>(0.0, 1.0, 0.0, 0.0); }
  }
}
