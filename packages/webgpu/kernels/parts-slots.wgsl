// Adds to each row's result what lies in its slots (flash-decoding's merge, arXiv 2205.14135 section 3): a slot is its normalized
// output, then (base-2 log-sum-exp, whether it is used, 0, 0). Slots are merged in their order, those of a thread's rows side by side.
fn addParts(
  tx: u32, ty: u32, sequence: Sequence, kvHead: u32, item: Item, seen: ptr<function, array<bool, RQ>>,
  maximum: ptr<function, array<f32, RQ>>, sum: ptr<function, array<f32, RQ>>,
  out: ptr<function, array<vec4<f32>, RQ * CQ>>,
) {
  // The place of the sequence's first row in the wave: by key head, then query, then query head of the group.
  let first = (kvHead - p.firstHead) * p.waveRows + sequence.query * p.group - p.firstToken * p.group;
  for (var slot = 0u; slot < p.slots; slot++) {
    @unroll for (var i = 0u; i < RQ; i++) {
      let row = min(item.firstRow + ty + TY * i, item.endRow - 1u);
      let at = ((first + row) * p.slots + slot) * (DQ + 1u);
      let tail = slots[at + DQ];
      let isUsed = tail.y != 0.0;
      let next = select((*maximum)[i], max((*maximum)[i], tail.x), isUsed);
      let factor = exp2Of((*maximum)[i] - next);
      let weight = select(0.0, exp2Of(tail.x - next), isUsed);
      (*maximum)[i] = next;
      (*sum)[i] = (*sum)[i] * factor + weight;
      (*seen)[i] = (*seen)[i] || isUsed;
      @unroll for (var n = 0u; n < CQ; n++) {
        let part = slots[at + min(tx + NX * n, DQ - 1u)];
        (*out)[i * CQ + n] = (*out)[i * CQ + n] * factor + select(vec4<f32>(), part * weight, isUsed);
      }
    }
  }
}
