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
  let firstPosition = positionOf(sequence, item.firstRow);
  let lastPosition = positionOf(sequence, min(item.firstRow + BQ, item.endRow) - 1u);
  let first = max(firstKey(firstPosition), i32(item.firstKey));
  let last = min(lastKey(sequence, lastPosition), i32(item.endKey));
  let range = KeyRange((sequence.key * p.kvHeads + kvHead) * p.d, p.kvHeads * p.d, last);
  var rows: array<vec4<f32>, FETCHED>;
  if (first < last) { fetchKeys(0u, thread, range, first, &rows); }
  loadQueries(thread, sequence, kvHead, item);

  var maximum: array<f32, RQ>;
  var sum: array<f32, RQ>;
  var out: array<vec4<f32>, RQ * CQ>;
  startSoftmax(&maximum, &sum, &out);
  var low: array<i32, RQ>;
  var high: array<i32, RQ>;
  @unroll for (var i = 0u; i < RQ; i++) {
    let position = positionOf(sequence, min(item.firstRow + ty + TY * i, item.endRow - 1u));
    low[i] = max(firstKey(position), i32(item.firstKey));
    high[i] = min(lastKey(sequence, position), i32(item.endKey));
  }
  attendKeys(
    thread, tx, ty, range, first, firstKey(lastPosition), min(lastKey(sequence, firstPosition), i32(item.endKey)),
    &rows, &low, &high, &maximum, &sum, &out,
  );

  var seen: array<bool, RQ>;
  @unroll for (var i = 0u; i < RQ; i++) { seen[i] = high[i] > low[i]; }
  addParts(tx, ty, sequence, kvHead, item, &seen, &maximum, &sum, &out);
  @unroll for (var i = 0u; i < RQ; i++) {
    let row = item.firstRow + ty + TY * i;
    if (row < item.endRow) {
      writeRow(tx, outputRow(sequence, kvHead, row), item, seen[i], i, maximum[i], sum[i], &out);
    }
  }
}

fn loadQueries(thread: u32, sequence: Sequence, kvHead: u32, item: Item) {
  for (var turn = 0u; turn < OWNED_TURNS; turn++) {
    var rows: array<vec4<f32>, FETCHED>;
    @unroll for (var n = 0u; n < FETCHED; n++) {
      let at = fetchedAt(turn, n, thread);
      let row = min(item.firstRow + at / DQ, item.endRow - 1u);
      rows[n] = q_row(outputRow(sequence, kvHead, row) * p.d, 4u * (at % DQ)) * (p.scale * LOG2_E);
    }
    @unroll for (var n = 0u; n < FETCHED; n++) {
      let at = fetchedAt(turn, n, thread);
      tiles[QUERIES + at / DQ][at % DQ] = select(vec4<f32>(), rows[n], item.firstRow + at / DQ < item.endRow);
    }
  }
}
