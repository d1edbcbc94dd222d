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
  let range = KeyRange(((sequence.key + key) * p.kvHeads + p.firstHead + head) * p.d, p.kvHeads * p.d, keys);
  var rows: array<vec4<f32>, FETCHED>;
  fetchKeys(0u, thread, range, 0, &rows);
  for (var r = thread; r < BQ; r += THREADS) {
    entryOf[r] = lists[p.entriesAt + tile * BQ + r];
    beginOf[r] = queryRow(max(entryOf[r], 1u) - 1u, head) * p.d;
  }
  workgroupBarrier();
  for (var turn = 0u; turn < OWNED_TURNS; turn++) {
    var queries: array<vec4<f32>, FETCHED>;
    @unroll for (var n = 0u; n < FETCHED; n++) {
      let at = fetchedAt(turn, n, thread);
      queries[n] = q_row(beginOf[at / DQ], 4u * (at % DQ)) * (p.scale * LOG2_E);
    }
    @unroll for (var n = 0u; n < FETCHED; n++) {
      let at = fetchedAt(turn, n, thread);
      tiles[QUERIES + at / DQ][at % DQ] = select(vec4<f32>(), queries[n], entryOf[at / DQ] > 0u);
    }
  }

  var maximum: array<f32, RQ>;
  var sum: array<f32, RQ>;
  var out: array<vec4<f32>, RQ * CQ>;
  startSoftmax(&maximum, &sum, &out);
  var low: array<i32, RQ>;
  var high: array<i32, RQ>;
  @unroll for (var i = 0u; i < RQ; i++) { high[i] = keys; }
  attendKeys(thread, tx, ty, range, 0, 0, keys, &rows, &low, &high, &maximum, &sum, &out);

  @unroll for (var i = 0u; i < RQ; i++) {
    let entry = entryOf[ty + TY * i];
    if (entry > 0u) {
      let slot = (head * p.waveRows * p.slots + entry - 1u) * (DQ + 1u);
      // Keys that all score −Infinity have no weight beside the row's other blocks.
      let factor = select(1.0 / sum[i], 0.0, bitcast<u32>(sum[i]) == 0u);
      @unroll for (var n = 0u; n < CQ; n++) {
        let c = tx + NX * n;
        if (c < DQ) { slots[slot + c] = out[i * CQ + n] * factor; }
      }
      if (tx == 0u) { slots[slot + DQ] = vec4<f32>(maximum[i] + log2Of(sum[i]), 1.0, 0.0, 0.0); }
    }
  }
}
