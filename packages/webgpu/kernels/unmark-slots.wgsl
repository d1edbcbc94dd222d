// Marks slots as unused: the second element of each one's last group becomes 0. One thread for a slot.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let slot = group_index(group) * 64u + thread;
  if (slot < p.size) { slots[slot * (DQ + 1u) + DQ] = vec4<f32>(); }
}
