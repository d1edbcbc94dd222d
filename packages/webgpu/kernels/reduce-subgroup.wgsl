// Reductions over the NX threads that share a row: neighbours in one subgroup, since NX is a power of two that divides its size.

fn rowMax(tx: u32, ty: u32, values: ptr<function, array<f32, RQ>>) {
  for (var i = 0u; i < RQ; i++) {
    var most = (*values)[i];
    for (var step = 1u; step < NX; step = step << 1u) { most = max(most, subgroupShuffleXor(most, step)); }
    (*values)[i] = most;
  }
  workgroupBarrier(); // as in the other version: every thread has scored
}

fn rowSum(tx: u32, ty: u32, values: ptr<function, array<f32, RQ>>) {
  for (var i = 0u; i < RQ; i++) {
    var sum = (*values)[i];
    for (var step = 1u; step < NX; step = step << 1u) { sum += subgroupShuffleXor(sum, step); }
    (*values)[i] = sum;
  }
}
