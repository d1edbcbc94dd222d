// The sum of parts, element by element, in their order.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = group_index(group) * 64u + thread;
  if (i >= p.size) { return; }
  var sum = 0.0;
  for (var part = 0u; part < p.parts; part++) { sum += parts[part * p.size + i]; }
  out[i] = sum;
}
