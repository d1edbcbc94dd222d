// Marks the slots of rows as unused. One thread for a slot.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = group_index(group) * 64u + thread;
  if (i < p.size) { markUnused(i / p.places, i % p.places); }
}
