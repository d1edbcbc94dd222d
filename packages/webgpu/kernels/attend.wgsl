// Queries of one tile of a block's list against the block's keys, each into its slot: normalized output, then
// (base-2 log-sum-exp, 1, 0, 0).

var<workgroup> entryOf: array<u32, BQ>;
var<workgroup> beginOf: array<u32, BQ>; // where each entry's query begins

@compute @workgroup_size(NX * TY)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tile = group_index(group);
  if (tile >= lists[p.startsAt + p.listCount]) { return; }
  let list = lists[p.tilesAt + tile];
  let head = list / p.blocks;
  let block = list % p.blocks;
  if (block < p.firstBlock || block >= p.endBlock) { return; }
  let sequence = sequenceOf(block, 4u);
  let key = (block - sequence.firstBlock) * p.blockSize;
  let keys = i32(min(p.blockSize, sequence.keys - key));
  let tx = columnOf(thread);
  let ty = rowOf(thread);
  for (var r = thread; r < BQ; r += THREADS) {
    entryOf[r] = lists[p.entriesAt + tile * BQ + r];
    beginOf[r] = queryRow(max(entryOf[r], 1u) - 1u, head) * p.d;
  }
  workgroupBarrier();
  for (var at = thread; at < BQ * DQ; at += THREADS) {
    var channels = vec4<f32>();
    if (entryOf[at / DQ] > 0u) { channels = q_row(beginOf[at / DQ], 4u * (at % DQ)) * (p.scale * LOG2_E); }
    tiles[QUERIES + at / DQ][at % DQ] = channels;
  }

  var maximum: array<f32, RQ>;
  var sum: array<f32, RQ>;
  var out: array<vec4<f32>, RQ * CQ>;
  startSoftmax(&maximum, &sum, &out);
  var low: array<i32, RQ>;
  var high: array<i32, RQ>;
  for (var i = 0u; i < RQ; i++) { high[i] = keys; }
  let begin = ((sequence.key + key) * p.kvHeads + p.firstHead + head) * p.d;
  attendKeys(tx, ty, begin, p.kvHeads * p.d, 0, keys, 0, keys, &low, &high, &maximum, &sum, &out);

  for (var i = 0u; i < RQ; i++) {
    let entry = entryOf[ty + TY * i];
    if (entry == 0u) { continue; }
    let slot = (head * p.waveRows * p.slots + entry - 1u) * (DQ + 1u);
    for (var n = 0u; n < CQ; n++) {
      let c = tx + NX * n;
      // Keys that all score −Infinity have no weight beside the row's other blocks.
      if (c < DQ) { slots[slot + c] = select(out[i * CQ + n] / sum[i], vec4<f32>(), bitcast<u32>(sum[i]) == 0u); }
    }
    if (tx == 0u) { slots[slot + DQ] = vec4<f32>(maximum[i] + log2Of(sum[i]), 1.0, 0.0, 0.0); }
  }
}
