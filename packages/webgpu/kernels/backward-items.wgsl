// Blocks of keys, and the rows of queries that pass by them: of the gradients of attention.
//
// parts: for each piece, for each key of the block, DQ groups of dk and DQ of dv. slots: for each row of the wave its p.places
// slots, each DQ groups, and one group more whose second element is 0 if the slot is unused.

const ALL = 0u;
const WINDOW = 2u;
const OWN_BLOCK = 3u;

const NOWHERE = 0xffffffffu;

// Rows that pass by: of a sequence, `first … end − 1`; or, if `listed`, entries of the list that begins at `begin` of lists. The slots
// of those before `touched` have something in them already.
struct Source {
  listed: bool,
  begin: u32,
  first: i32,
  end: i32,
  touched: i32,
}

// What a workgroup works at: a block's keys, and a piece of the rows that see them.
struct Item {
  exists: bool,
  head: u32,
  block: u32,
  piece: u32,
  own: bool, // with the rows of the sequence that see keys of their own block
  source: Source,
}

fn itemAt(index: u32) -> Item {
  if (!LISTED) {
    let at = p.entriesAt + 3u * (p.firstItem + index / p.headCount);
    let source = Source(false, 0u, i32(lists[at + 1u]), i32(lists[at + 2u]), 0);
    return Item(index < p.groups, index % p.headCount, lists[at], index, true, source);
  }
  let list = lists[p.tilesAt + index];
  let first = lists[p.startsAt + list];
  let tile = index - first;
  let head = list / p.blocks;
  let block = list % p.blocks;
  let exists =
    index < lists[p.startsAt + p.listCount] && list >= p.firstList && list < p.endList && tile % p.pieceTiles == 0u;
  let end = min((tile + p.pieceTiles) * LIST_TILE, lists[p.countsAt + list]);
  let source = Source(true, p.entriesAt + first * LIST_TILE, i32(tile * LIST_TILE), i32(end), 0);
  return Item(exists, head, block, firstPiece(head, block) + tile / p.pieceTiles, OWN && tile == 0u, source);
}

// The rows of the item's sequence that see any of keys firstKey … endKey − 1 by the mask. Those before `touched` met the block's keys
// before.
fn rowsOfSequence(sequence: Sequence, item: Item, firstKey: u32, endKey: u32, touched: i32) -> Source {
  var rows = Source(false, 0u, firstRow(sequence, firstKey), endRow(sequence, endKey - 1u), touched);
  if (!LISTED) {
    rows.first = max(rows.first, item.source.first);
    rows.end = min(rows.end, item.source.end);
  }
  return rows;
}

// The first row of the wave (query of the sequence, query head of the group) that sees a key, and the row after the last.
fn firstRow(sequence: Sequence, key: u32) -> i32 {
  let first = max(0, i32(p.firstToken) - i32(sequence.query));
  if (p.mask == ALL) { return i32(p.group) * first; }
  return i32(p.group) * max(first, i32(key) + i32(sequence.queries) - i32(sequence.keys));
}

fn endRow(sequence: Sequence, key: u32) -> i32 {
  let beforeFirst = i32(sequence.keys) - i32(sequence.queries); // the position of the first query
  var end = min(i32(sequence.queries), i32(p.firstToken + p.waveRows / p.group) - i32(sequence.query));
  switch p.mask {
    case WINDOW: { end = min(end, i32(key + p.span) - beforeFirst); }
    case OWN_BLOCK: { end = min(end, i32((key / p.span + 1u) * p.span) - beforeFirst); }
    default: {}
  }
  return i32(p.group) * max(0, end);
}

// The rows of a source that see a key: the first, and the one after the last.
fn rowsThatSee(sequence: Sequence, source: Source, key: u32) -> vec2<i32> {
  if (source.listed) { return vec2<i32>(source.first, source.end); }
  return vec2<i32>(firstRow(sequence, key), min(endRow(sequence, key), source.end));
}

// A passing row's place in [T, H], and that of its slot.
fn placesOf(sequence: Sequence, head: u32, block: u32, source: Source, row: u32) -> vec2<u32> {
  var waveRow: u32;
  var slot: u32;
  if (source.listed) {
    let entry = lists[source.begin + row] - 1u;
    waveRow = entry / p.slots;
    slot = entry % p.slots;
  } else {
    waveRow = row + sequence.query * p.group - p.firstToken * p.group;
    slot = select((block - sequence.firstBlock) % p.places, p.places - 1u, LISTED);
  }
  let token = p.firstToken + waveRow / p.group;
  let place = (token * p.kvHeads + p.firstHead + head) * p.group + waveRow % p.group;
  return vec2<u32>(place, (head * p.waveRows + waveRow) * p.places + slot);
}

// What is to be known of a passing row; of one beyond the last, the last one's, but no place.
struct Passing {
  begin: u32,
  place: u32,
  stats: vec2<f32>,
}

fn passingRow(sequence: Sequence, head: u32, block: u32, source: Source, row: i32) -> Passing {
  let places = placesOf(sequence, head, block, source, u32(min(row, source.end - 1)));
  let place = select(NOWHERE, places.y, row < source.end);
  return Passing(places.x * p.d, place, stats[places.x - p.stats_from]);
}
