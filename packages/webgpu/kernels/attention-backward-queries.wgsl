// dq: the sum of each row's slots, in their order. One thread for four channels of a row.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = group_index(group) * 64u + thread;
  if (i >= p.size) { return; }
  let c = i % DQ;
  let waveRow = i / DQ % p.waveRows;
  let head = i / DQ / p.waveRows;
  var sum = vec4<f32>();
  for (var slot = 0u; slot < p.places; slot++) {
    let at = (i / DQ * p.places + slot) * (DQ + 1u);
    if (slots[at + DQ].y != 0.0) { sum += slots[at + c]; }
  }
  let token = p.firstToken + waveRow / p.group;
  let row = (token * p.kvHeads + p.firstHead + head) * p.group + waveRow % p.group;
  dq_put(row * p.d, 4u * c, p.scale * sum);
}
