// Merges the slots of each row: one workgroup a row. Slots as in write-merged.wgsl.

const MINUS_INFINITY = 0xff800000u;
const LOWEST = -3.0e38;
const LN_2 = 0.6931471805599453;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let row = p.firstRow + index;
  let first = index * p.slots * (DQ + 1u);
  for (var c = thread; c < DQ; c += 64u) {
    var maximum = LOWEST;
    var sum = 0.0;
    var out = vec4<f32>();
    for (var slot = 0u; slot < p.slots; slot++) {
      let tail = slots[first + slot * (DQ + 1u) + DQ];
      if (tail.y == 0.0) { continue; }
      let next = max(maximum, tail.x);
      let factor = exp2Of(maximum - next);
      let weight = exp2Of(tail.x - next);
      maximum = next;
      sum = sum * factor + weight;
      out = out * factor + slots[first + slot * (DQ + 1u) + c] * weight;
    }
    let seen = bitcast<u32>(sum) != 0u;
    out_put(row * p.d, 4u * c, select(vec4<f32>(), out / sum, seen));
    if (c == 0u) { lse[row - p.lse_from] = select(MINUS_INFINITY, bitcast<u32>((maximum + log2Of(sum)) * LN_2), seen); }
  }
}
