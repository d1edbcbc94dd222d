// Reductions over the NX threads that share a row: they lie in one subgroup, since NX is a power of two that divides its size, and
// differ in its lowest bits, or INTERLEAVED in every second one.

// The bit of a lane that is bit x of its column.
fn laneOf(x: u32) -> u32 { return select(x, x * x, INTERLEAVED); }

fn rowMax(tx: u32, ty: u32, values: ptr<function, array<f32, RQ>>) {
  @unroll for (var i = 0u; i < RQ; i++) {
    var most = (*values)[i];
    for (var x = 1u; x < NX; x <<= 1u) { most = max(most, subgroupShuffleXor(most, laneOf(x))); }
    (*values)[i] = most;
  }
  workgroupBarrier(); // as in the other version: every thread has scored
}

fn rowSum(tx: u32, ty: u32, values: ptr<function, array<f32, RQ>>) {
  @unroll for (var i = 0u; i < RQ; i++) {
    var sum = (*values)[i];
    for (var x = 1u; x < NX; x <<= 1u) { sum += subgroupShuffleXor(sum, laneOf(x)); }
    (*values)[i] = sum;
  }
}
