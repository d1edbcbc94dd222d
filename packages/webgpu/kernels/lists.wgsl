// A routing turned round: for each (key head, block) the list of the (query, slot) pairs that chose it, in order.
//
// lists holds: for each sequence (first query token, queries, first key token, keys, first block, blocks, 0, 0); then, from
// p.startsAt, where each list starts, in tiles of LIST_TILE entries, and the end of the last; from p.countsAt, how many entries
// it has; from p.tilesAt, the list of each tile; from p.entriesAt, the entries, each one more than (row · slots + slot), 0 in the rest of a list's last tile.
// A list is kvHead · blocks + block; rows are (query, query head of the group) pairs of the wave: (token − p.firstToken) · G + g.

struct Sequence {
  query: u32,
  queries: u32,
  key: u32,
  keys: u32,
  firstBlock: u32,
}

fn sequenceAt(s: u32) -> Sequence {
  return Sequence(lists[8u * s], lists[8u * s + 1u], lists[8u * s + 2u], lists[8u * s + 3u], lists[8u * s + 4u]);
}

// The last sequence whose field `field` is at most `value`: the one that holds a token (field 0) or a block (field 4).
fn sequenceOf(value: u32, field: u32) -> Sequence {
  var low = 0u;
  var high = p.sequences;
  while (high - low > 1u) {
    let middle = (low + high) / 2u;
    if (lists[8u * middle + field] <= value) { low = middle; } else { high = middle; }
  }
  return sequenceAt(low);
}
