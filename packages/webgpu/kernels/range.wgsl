// Queries in a row against the range of keys that a mask lets each see.
//
// plan: for each sequence (first query token, queries, first key token, keys) and (first block, blocks, 0, 0); then for each
// item (sequence, first row, end row, 0) and (first key, end key, split, 0).
// Rows of a tile are (query, query head of the key head's group) pairs: row = query · G + head in group.

const ALL = 0u;
const CAUSAL = 1u;
const WINDOW = 2u; // the p.span keys up to the query's position
const OWN_BLOCK = 3u; // the keys of the query's own block, of p.span keys, up to its position
const NOTHING = 4u;

struct Sequence {
  query: u32,
  queries: u32,
  key: u32,
  keys: u32,
}

// What a workgroup works at: some rows of a sequence, and which keys they may see at most.
struct Item {
  sequence: u32,
  firstRow: u32,
  endRow: u32,
  firstKey: u32,
  endKey: u32,
  split: u32,
}

fn sequenceAt(s: u32) -> Sequence {
  let at = plan[2u * s];
  return Sequence(at.x, at.y, at.z, at.w);
}

// The position of a row's query among the keys; negative before the first.
fn positionOf(sequence: Sequence, row: u32) -> i32 {
  return i32(row / p.group) + i32(sequence.keys) - i32(sequence.queries);
}

// The first key that a query at a position sees.
fn firstKey(position: i32) -> i32 {
  switch p.mask {
    case WINDOW: { return max(0, position + 1 - i32(p.span)); }
    case OWN_BLOCK: { return (max(0, position) / i32(p.span)) * i32(p.span); }
    default: { return 0; }
  }
}

// The key after the last one that it sees.
fn lastKey(sequence: Sequence, position: i32) -> i32 {
  switch p.mask {
    case ALL: { return i32(sequence.keys); }
    case NOTHING: { return 0; }
    default: { return max(0, position + 1); }
  }
}

// Row `row` of key head `kvHead`, as a row of [T, H].
fn outputRow(sequence: Sequence, kvHead: u32, row: u32) -> u32 {
  return (sequence.query + row / p.group) * (p.kvHeads * p.group) + kvHead * p.group + row % p.group;
}
