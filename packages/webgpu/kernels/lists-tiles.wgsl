// Which list each tile belongs to, and zeros after a list's last entry.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tile = group_index(group) * 64u + thread;
  if (tile >= lists[p.startsAt + p.listCount]) { return; }
  // The last list that starts at or before the tile: those without tiles start where the next one does.
  var low = 0u;
  var high = p.listCount;
  while (high - low > 1u) {
    let middle = (low + high) / 2u;
    if (lists[p.startsAt + middle] <= tile) { low = middle; } else { high = middle; }
  }
  lists[p.tilesAt + tile] = low;
  let end = lists[p.startsAt + low] * LIST_TILE + lists[p.countsAt + low];
  for (var entry = max(end, tile * LIST_TILE); entry < (tile + 1u) * LIST_TILE; entry++) { lists[p.entriesAt + entry] = 0u; }
}
