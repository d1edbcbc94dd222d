// Runs a function on every group of four elements.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = p.firstQuad + group_index(group) * 64u + thread;
  if (i < p.endQuad) { compute(i); }
}
