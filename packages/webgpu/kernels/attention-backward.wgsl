// The gradients of attention by blocks of keys, probabilities recomputed from the log-sum-exp (arXiv 2205.14135, appendix B). A workgroup
// has a block's keys, and a piece of the rows of queries that see them: rows of a sequence, or entries of the block's list. What
// they give to dk and dv it sums up in `parts`; what the block gives to each row's dq it sums up in a slot of the row's.
//
// parts: for each piece, for each key of the block, DQ groups of dk and DQ of dv. slots: for each row of the wave its p.places
// slots, each DQ groups, and one group more whose second element is 0 if the slot is unused.

const KEYS = 0u;
const VALUES = BQ;
const QUERIES = VALUES + BQ;
const GRADIENTS = QUERIES + BK;
const TILE_ROWS = GRADIENTS + BK;
const WEIGHTS = 0u;
const SCORE_GRADIENTS = BQ;
const WEIGHT_ROWS = 2u * BQ;

const ALL = 0u;
const WINDOW = 2u;
const OWN_BLOCK = 3u;

const NOWHERE = 0xffffffffu;

var<workgroup> statsOf: array<vec2<f32>, BK>;
// Where each passing row's query begins, and the place of its slot. Beyond the last row: that row's query, and NOWHERE.
var<workgroup> beginOf: array<u32, BK>;
var<workgroup> placeOf: array<u32, BK>;

// Rows that pass by: of a sequence, `first … end − 1`; or, if `listed`, entries of the list that begins at `begin` of lists. The slots
// of those before `touched` have something in them already.
struct Source {
  listed: bool,
  begin: u32,
  first: i32,
  end: i32,
  touched: i32,
}

@compute @workgroup_size(NX * TY)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  var head: u32;
  var block: u32;
  var piece: u32;
  var own = !LISTED;
  var source: Source;
  if (LISTED) {
    if (index >= lists[p.startsAt + p.listCount]) { return; }
    let list = lists[p.tilesAt + index];
    let tile = index - lists[p.startsAt + list];
    if (list < p.firstList || list >= p.endList || tile % p.pieceTiles != 0u) { return; }
    head = list / p.blocks;
    block = list % p.blocks;
    piece = firstPiece(head, block) + tile / p.pieceTiles;
    own = OWN && tile == 0u;
    let end = min((tile + p.pieceTiles) * LIST_TILE, lists[p.countsAt + list]);
    source = Source(true, p.entriesAt + lists[p.startsAt + list] * LIST_TILE, i32(tile * LIST_TILE), i32(end), 0);
  } else {
    let at = p.entriesAt + 3u * (p.firstItem + index / p.headCount);
    head = index % p.headCount;
    block = lists[at];
    piece = index;
    source = Source(false, 0u, i32(lists[at + 1u]), i32(lists[at + 2u]), 0);
  }
  let sequence = sequenceOf(block, 4u);
  let blockKey = (block - sequence.firstBlock) * p.blockSize;
  let blockEnd = min(blockKey + p.blockSize, sequence.keys);
  let tx = columnOf(thread);
  let ty = rowOf(thread);
  let keyHead = (sequence.key * p.kvHeads + p.firstHead + head) * p.d;
  let step = p.kvHeads * p.d;
  var touched = 0;
  for (var firstKey = blockKey; firstKey < blockEnd; firstKey += BQ) {
    let endKey = min(firstKey + BQ, blockEnd);
    workgroupBarrier();
    if (thread == 0u) { atomicStore(&nonFinite, 0u); }
    workgroupBarrier();
    for (var turn = 0u; turn < OWNED_TURNS; turn++) {
      var keys: array<vec4<f32>, FETCHED>;
      var values: array<vec4<f32>, FETCHED>;
      @unroll for (var n = 0u; n < FETCHED; n++) {
        let at = fetchedAt(turn, n, thread);
        let row = keyHead + min(firstKey + at / DQ, endKey - 1u) * step;
        keys[n] = k_row(row, 4u * (at % DQ));
        values[n] = v_row(row, 4u * (at % DQ));
      }
      @unroll for (var n = 0u; n < FETCHED; n++) {
        let at = fetchedAt(turn, n, thread);
        let isKey = firstKey + at / DQ < endKey;
        noteNonFinite(keys[n]);
        tiles[KEYS + at / DQ][at % DQ] = select(vec4<f32>(), keys[n], isKey);
        tiles[VALUES + at / DQ][at % DQ] = select(vec4<f32>(), values[n], isKey);
      }
    }
    var dk: array<vec4<f32>, RQ * CQ>;
    var dv: array<vec4<f32>, RQ * CQ>;
    @unroll for (var i = 0u; i < RQ; i++) {
      @unroll for (var n = 0u; n < CQ; n++) {
        dk[i * CQ + n] = vec4<f32>();
        dv[i * CQ + n] = vec4<f32>();
      }
    }
    // The rows of the sequence that see keys of their own block, then those of the list.
    for (var turn = select(1u, 0u, own); turn < select(1u, 2u, LISTED); turn++) {
      var rows = source;
      if (turn == 0u) {
        rows = Source(false, 0u, firstRow(sequence, firstKey), endRow(sequence, endKey - 1u), touched);
        if (!LISTED) {
          rows.first = max(rows.first, source.first);
          rows.end = min(rows.end, source.end);
        }
        touched = max(touched, rows.end);
      }
      passQueries(thread, sequence, head, block, rows, firstKey, endKey, &dk, &dv);
    }
    source.touched = source.end;
    @unroll for (var i = 0u; i < RQ; i++) {
      let key = firstKey + ty + TY * i;
      let at = (piece * p.blockSize + key - blockKey) * (2u * DQ);
      @unroll for (var n = 0u; n < CQ; n++) {
        let c = tx + NX * n;
        if (key < endKey && c < DQ) {
          parts[at + c] = p.scale * dk[i * CQ + n];
          parts[at + DQ + c] = dv[i * CQ + n];
        }
      }
    }
  }
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

// Whether a passing row sees a key of the tile.
fn sees(sequence: Sequence, source: Source, row: i32, key: u32, endKey: u32) -> bool {
  if (row >= source.end || key >= endKey) { return false; }
  return source.listed || (row >= firstRow(sequence, key) && row < endRow(sequence, key));
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

fn storePassing(j: u32, row: Passing) {
  beginOf[j] = row.begin;
  placeOf[j] = row.place;
  statsOf[j] = row.stats;
}

// dv += p dOut, dk += ds q and each slot += ds k over the rows of a source.
fn passQueries(
  thread: u32, sequence: Sequence, head: u32, block: u32, source: Source, firstKey: u32, endKey: u32,
  dk: ptr<function, array<vec4<f32>, RQ * CQ>>, dv: ptr<function, array<vec4<f32>, RQ * CQ>>,
) {
  let tx = columnOf(thread);
  let ty = rowOf(thread);
  // Key row i is seen by rows low[i] … high[i] − 1; every key by those from allFirst to allLast − 1.
  var low: array<i32, RQ>;
  var high: array<i32, RQ>;
  @unroll for (var i = 0u; i < RQ; i++) {
    let key = firstKey + ty + TY * i;
    low[i] = select(firstRow(sequence, key), source.first, source.listed);
    high[i] = select(min(endRow(sequence, key), source.end), source.end, source.listed);
    if (key >= endKey) { high[i] = low[i]; }
  }
  let allFirst = select(firstRow(sequence, endKey - 1u), source.first, source.listed);
  var allLast = select(endRow(sequence, firstKey), source.end, source.listed);
  if (endKey < firstKey + BQ) { allLast = allFirst; }
  var ahead = Passing(0u, NOWHERE, vec2<f32>());
  if (source.first < source.end) {
    ahead = passingRow(sequence, head, block, source, source.first + i32(thread));
  }
  for (var row = source.first; row < source.end; row += i32(BK)) {
    let all = row >= allFirst && row + i32(BK) <= min(allLast, source.end);
    workgroupBarrier();
    if (thread < BK) { storePassing(thread, ahead); }
    for (var j = thread + THREADS; j < BK; j += THREADS) {
      storePassing(j, passingRow(sequence, head, block, source, row + i32(j)));
    }
    workgroupBarrier();
    for (var turn = 0u; turn < PASSING_TURNS; turn++) {
      var queries: array<vec4<f32>, FETCHED>;
      var gradients: array<vec4<f32>, FETCHED>;
      @unroll for (var n = 0u; n < FETCHED; n++) {
        let at = fetchedAt(turn, n, thread);
        queries[n] = q_row(beginOf[at / DQ], 4u * (at % DQ));
        gradients[n] = dOut_row(beginOf[at / DQ], 4u * (at % DQ));
      }
      @unroll for (var n = 0u; n < FETCHED; n++) {
        let at = fetchedAt(turn, n, thread);
        let j = at / DQ;
        let isRow = placeOf[j] != NOWHERE;
        if (!all) {
          noteNonFinite(queries[n]);
          noteNonFinite(gradients[n]);
        }
        tiles[QUERIES + place(j)][at % DQ] = select(vec4<f32>(), queries[n], isRow);
        tiles[GRADIENTS + place(j)][at % DQ] = select(vec4<f32>(), gradients[n], isRow);
      }
    }
    workgroupBarrier();
    ahead = passingRow(sequence, head, block, source, row + i32(BK + thread));
    var weights: array<vec4<f32>, RQ>;
    var gradients: array<vec4<f32>, RQ>;
    scoreRows(KEYS, QUERIES, tx, ty, &weights);
    scoreRows(VALUES, GRADIENTS, tx, ty, &gradients);
    let a = statsOf[4u * tx];
    let b = statsOf[4u * tx + 1u];
    let c = statsOf[4u * tx + 2u];
    let d = statsOf[4u * tx + 3u];
    @unroll for (var i = 0u; i < RQ; i++) {
      weights[i] = exp2Of4(weights[i] * (p.scale * LOG2_E) - vec4<f32>(a.x, b.x, c.x, d.x));
      gradients[i] = weights[i] * (gradients[i] - vec4<f32>(a.y, b.y, c.y, d.y));
      if (!all) {
        let seen = visible(low[i], high[i], row + i32(4u * tx));
        weights[i] = select(vec4<f32>(), weights[i], seen);
        gradients[i] = select(vec4<f32>(), gradients[i], seen);
      }
    }
    storeWeights(WEIGHTS, tx, ty, &weights);
    storeWeights(SCORE_GRADIENTS, tx, ty, &gradients);
    workgroupBarrier();
    accumulateVisible(WEIGHTS, GRADIENTS, tx, ty, &low, &high, row, dv);
    accumulateVisible(SCORE_GRADIENTS, QUERIES, tx, ty, &low, &high, row, dk);
    addToSlots(tx, ty, sequence, source, row, firstKey, endKey);
  }
}

// slot of row 4·tx + e += Σ_i ds[i][e] · key row i, two groups of channels at a time: ty and ty + TY, and so on. What is in the slots
// is fetched before it is needed.
fn addToSlots(tx: u32, ty: u32, sequence: Sequence, source: Source, row: i32, firstKey: u32, endKey: u32) {
  let finite = atomicLoad(&nonFinite) == 0u;
  let first = row + i32(4u * tx);
  let rows = vec4<i32>(first) + vec4<i32>(0, 1, 2, 3);
  let places = vec4<u32>(placeOf[4u * tx], placeOf[4u * tx + 1u], placeOf[4u * tx + 2u], placeOf[4u * tx + 3u]);
  let isRow = places != vec4<u32>(NOWHERE);
  let at = select(vec4<u32>(), places, isRow) * (DQ + 1u);
  let isTouched = rows < vec4<i32>(source.touched);
  for (var c = ty; c < DQ; c += 2u * TY) {
    let next = min(c + TY, DQ - 1u);
    let more = c + TY < DQ;
    var before: array<vec4<f32>, 4>;
    var beforeNext: array<vec4<f32>, 4>;
    @unroll for (var e = 0u; e < 4u; e++) {
      before[e] = slots[at[e] + c];
      if (TY < DQ) { beforeNext[e] = slots[at[e] + next]; }
    }
    var a0 = vec4<f32>();
    var a1 = vec4<f32>();
    var a2 = vec4<f32>();
    var a3 = vec4<f32>();
    var b0 = vec4<f32>();
    var b1 = vec4<f32>();
    var b2 = vec4<f32>();
    var b3 = vec4<f32>();
    if (finite) {
      for (var i = 0u; i < BQ; i++) {
        let ds = weightTiles[SCORE_GRADIENTS + i][tx];
        let x = tiles[KEYS + i][c];
        let y = tiles[KEYS + i][next];
        a0 = fma(vec4<f32>(ds.x), x, a0);
        a1 = fma(vec4<f32>(ds.y), x, a1);
        a2 = fma(vec4<f32>(ds.z), x, a2);
        a3 = fma(vec4<f32>(ds.w), x, a3);
        if (TY >= DQ) { continue; }
        b0 = fma(vec4<f32>(ds.x), y, b0);
        b1 = fma(vec4<f32>(ds.y), y, b1);
        b2 = fma(vec4<f32>(ds.z), y, b2);
        b3 = fma(vec4<f32>(ds.w), y, b3);
      }
    } else {
      for (var i = 0u; i < BQ; i++) {
        let ds = weightTiles[SCORE_GRADIENTS + i][tx];
        let x = tiles[KEYS + i][c];
        let y = tiles[KEYS + i][next];
        if (sees(sequence, source, first, firstKey + i, endKey)) { a0 += ds.x * x; b0 += ds.x * y; }
        if (sees(sequence, source, first + 1, firstKey + i, endKey)) { a1 += ds.y * x; b1 += ds.y * y; }
        if (sees(sequence, source, first + 2, firstKey + i, endKey)) { a2 += ds.z * x; b2 += ds.z * y; }
        if (sees(sequence, source, first + 3, firstKey + i, endKey)) { a3 += ds.w * x; b3 += ds.w * y; }
      }
    }
    let a = array<vec4<f32>, 4>(a0, a1, a2, a3);
    let b = array<vec4<f32>, 4>(b0, b1, b2, b3);
    @unroll for (var e = 0u; e < 4u; e++) {
      if (isRow[e]) {
        slots[at[e] + c] = a[e] + select(vec4<f32>(), before[e], isTouched[e]);
        if (more) { slots[at[e] + next] = b[e] + select(vec4<f32>(), beforeNext[e], isTouched[e]); }
        if (c == 0u && !isTouched[e]) { slots[at[e] + DQ] = vec4<f32>(0.0, 1.0, 0.0, 0.0); }
      }
    }
  }
}
