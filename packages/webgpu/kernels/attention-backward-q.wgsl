// dq of a tile of queries over the keys that the mask lets through, plus what lies in their slots.

@compute @workgroup_size(NX * TY)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let at = p.firstItem + 2u * (index / p.headCount);
  let item = Item(plan[at].x, plan[at].y, plan[at].z, plan[at + 1u].x, plan[at + 1u].y, plan[at + 1u].z);
  let kvHead = p.firstHead + index % p.headCount;
  let sequence = sequenceAt(item.sequence);
  let tx = thread % NX;
  let ty = thread / NX;
  for (var at = thread; at < BQ * DQ; at += THREADS) {
    let row = item.firstRow + at / DQ;
    loadQuery(at / DQ, at % DQ, outputRow(sequence, kvHead, row), row < item.endRow);
  }

  var low: array<i32, RQ>;
  var high: array<i32, RQ>;
  var rowStats: array<vec2<f32>, RQ>;
  var sums: array<vec4<f32>, RQ * CQ>;
  for (var i = 0u; i < RQ; i++) {
    let row = min(item.firstRow + ty + TY * i, item.endRow - 1u);
    low[i] = firstKey(positionOf(sequence, row));
    high[i] = lastKey(sequence, positionOf(sequence, row));
    rowStats[i] = stats[outputRow(sequence, kvHead, row)];
  }
  let firstPosition = positionOf(sequence, item.firstRow);
  let lastPosition = positionOf(sequence, min(item.firstRow + BQ, item.endRow) - 1u);
  gradientOverKeys(
    tx, ty, (sequence.key * p.kvHeads + kvHead) * p.d, p.kvHeads * p.d,
    firstKey(firstPosition), lastKey(sequence, lastPosition), firstKey(lastPosition), lastKey(sequence, firstPosition),
    &low, &high, &rowStats, &sums,
  );

  for (var i = 0u; i < RQ; i++) {
    let row = item.firstRow + ty + TY * i;
    if (row >= item.endRow) { continue; }
    let output = outputRow(sequence, kvHead, row);
    let place = index % p.headCount * p.waveRows + (output / (p.kvHeads * p.group) - p.firstToken) * p.group + row % p.group;
    for (var slot = 0u; slot < p.slots; slot++) {
      let at = (place * p.slots + slot) * (DQ + 1u);
      if (slots[at + DQ].y == 0.0) { continue; }
      for (var n = 0u; n < CQ; n++) { sums[i * CQ + n] += slots[at + min(tx + NX * n, DQ - 1u)]; }
    }
    for (var n = 0u; n < CQ; n++) {
      let c = tx + NX * n;
      if (c < DQ) { dq_put(output * p.d, 4u * c, p.scale * sums[i * CQ + n]); }
    }
  }
}
