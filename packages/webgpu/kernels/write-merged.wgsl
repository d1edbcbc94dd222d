// The result of a row whose other parts lie in slots (flash-decoding's merge, arXiv 2205.14135 section 3): a slot is
// its normalized output, then (base-2 log-sum-exp, whether it is used, 0, 0). Slots are merged in their order.
fn writeRow(
  tx: u32, row: u32, item: Item, own: bool, i: u32,
  ownMaximum: f32, ownSum: f32, out: ptr<function, array<vec4<f32>, RQ * CQ>>,
) {
  var maximum = ownMaximum;
  var sum = ownSum;
  var seen = own;
  let heads = p.kvHeads * p.group;
  let token = row / heads;
  // The place of the row in the wave: by key head, then query, then query head of the group.
  let kvHead = (row % heads) / p.group;
  let place = (kvHead - p.firstHead) * p.waveRows + (token - p.firstToken) * p.group + row % p.group;
  for (var slot = 0u; slot < p.slots; slot++) {
    let at = (place * p.slots + slot) * (DQ + 1u);
    let tail = slots[at + DQ];
    if (tail.y == 0.0) { continue; }
    seen = true;
    let next = max(maximum, tail.x);
    let factor = exp2Of(maximum - next);
    let weight = exp2Of(tail.x - next);
    maximum = next;
    sum = sum * factor + weight;
    for (var n = 0u; n < CQ; n++) {
      let part = slots[at + min(tx + NX * n, DQ - 1u)];
      (*out)[i * CQ + n] = (*out)[i * CQ + n] * factor + part * weight;
    }
  }
  writeFinal(tx, row, seen, i, maximum, sum, out);
}
