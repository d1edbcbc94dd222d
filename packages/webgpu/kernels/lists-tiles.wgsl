// Which list each tile belongs to.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let list = group_index(group) * 64u + thread;
  if (list >= p.listCount) { return; }
  for (var tile = lists[p.startsAt + list]; tile < lists[p.startsAt + list + 1u]; tile++) {
    lists[p.tilesAt + tile] = list;
  }
}
