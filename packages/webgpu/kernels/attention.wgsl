// Softmax attention of a tile of queries over the keys that the mask lets through.

@compute @workgroup_size(NX * TY)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let at = p.firstItem + 2u * (index / p.headCount);
  let item = Item(plan[at].x, plan[at].y, plan[at].z, plan[at + 1u].x, plan[at + 1u].y, plan[at + 1u].z);
  let kvHead = p.firstHead + index % p.headCount;
  let sequence = sequenceAt(item.sequence);
  let tx = columnOf(thread);
  let ty = rowOf(thread);
  loadQueries(thread, sequence, kvHead, item);

  var maximum: array<f32, RQ>;
  var sum: array<f32, RQ>;
  var out: array<vec4<f32>, RQ * CQ>;
  startSoftmax(&maximum, &sum, &out);
  var low: array<i32, RQ>;
  var high: array<i32, RQ>;
  for (var i = 0u; i < RQ; i++) {
    let position = positionOf(sequence, min(item.firstRow + ty + TY * i, item.endRow - 1u));
    low[i] = max(firstKey(position), i32(item.firstKey));
    high[i] = min(lastKey(sequence, position), i32(item.endKey));
  }
  let firstPosition = positionOf(sequence, item.firstRow);
  let lastPosition = positionOf(sequence, min(item.firstRow + BQ, item.endRow) - 1u);
  attendKeys(
    tx, ty, (sequence.key * p.kvHeads + kvHead) * p.d, p.kvHeads * p.d,
    max(firstKey(firstPosition), i32(item.firstKey)), min(lastKey(sequence, lastPosition), i32(item.endKey)),
    firstKey(lastPosition), min(lastKey(sequence, firstPosition), i32(item.endKey)),
    &low, &high, &maximum, &sum, &out,
  );

  for (var i = 0u; i < RQ; i++) {
    let row = item.firstRow + ty + TY * i;
    if (row >= item.endRow) { continue; }
    writeRow(tx, outputRow(sequence, kvHead, row), item, high[i] > low[i], i, maximum[i], sum[i], &out);
  }
}

fn loadQueries(thread: u32, sequence: Sequence, kvHead: u32, item: Item) {
  for (var at = thread; at < BQ * DQ; at += THREADS) {
    let row = item.firstRow + at / DQ;
    var channels = vec4<f32>();
    if (row < item.endRow) {
      channels = q_row(outputRow(sequence, kvHead, row) * p.d, 4u * (at % DQ)) * (p.scale * LOG2_E);
    }
    tiles[QUERIES + at / DQ][at % DQ] = channels;
  }
}
