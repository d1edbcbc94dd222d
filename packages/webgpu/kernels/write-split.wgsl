// A part of a row's result, over some of its keys: normalized output, then (base-2 log-sum-exp, whether it saw a key, 0, 0).
fn writeRow(
  tx: u32, row: u32, item: Item, seen: bool, i: u32,
  maximum: f32, sum: f32, out: ptr<function, array<vec4<f32>, RQ * CQ>>,
) {
  let slot = (row * p.slots + item.split) * (DQ + 1u) - p.slots_from;
  @unroll for (var n = 0u; n < CQ; n++) {
    let c = tx + NX * n;
    if (c < DQ) { slots[slot + c] = (*out)[i * CQ + n] / sum; }
  }
  if (tx == 0u) {
    slots[slot + DQ] = vec4<f32>(maximum + log2Of(sum), select(0.0, 1.0, seen), 0.0, 0.0);
  }
}
