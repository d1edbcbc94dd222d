// dk and dv of a tile of keys of one key head, over the queries that see them: those that the mask lets through, in a row; then,
// if there are lists, those of the list of the keys' block. Probabilities are recomputed from the log-sum-exp.

const KEYS = 0u;
const VALUES = BQ * ROW;
const QUERIES = VALUES + BQ * ROW;
const GRADIENTS = QUERIES + BK * ROW;
const WEIGHTS = GRADIENTS + BK * ROW;
const SCORE_GRADIENTS = WEIGHTS + BQ * WEIGHT_ROW;
const TILE_QUADS = SCORE_GRADIENTS + BQ * WEIGHT_ROW;

const ALL = 0u;
const CAUSAL = 1u;
const WINDOW = 2u;
const OWN_BLOCK = 3u;
const NOTHING = 4u;

var<workgroup> statsOf: array<vec2<f32>, BK>;

@compute @workgroup_size(NX * TY)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let item = index / p.headCount;
  let head = index % p.headCount;
  let kvHead = p.firstHead + head;
  var sequence: Sequence;
  var firstKey: u32;
  var endKey: u32;
  var list = 0u;
  if ((p.listed != 0u)) {
    let tilesOfBlock = (p.span + BQ - 1u) / BQ;
    let block = item / tilesOfBlock;
    list = head * p.blocks + block;
    sequence = sequenceOf(block, 4u);
    let blockKey = (block - sequence.firstBlock) * p.span;
    firstKey = blockKey + (item % tilesOfBlock) * BQ;
    endKey = min(blockKey + p.span, sequence.keys);
    if (firstKey >= endKey) { return; }
  } else {
    sequence = sequenceAt(lists[p.startsAt + 2u * item]);
    firstKey = lists[p.startsAt + 2u * item + 1u];
    endKey = sequence.keys;
  }
  let tx = thread % NX;
  let ty = thread / NX;
  let keyHead = (sequence.key * p.kvHeads + kvHead) * p.d;
  let step = p.kvHeads * p.d;
  for (var at = thread; at < BQ * DQ; at += THREADS) {
    let key = firstKey + at / DQ;
    var keyRow = vec4<f32>();
    var valueRow = vec4<f32>();
    if (key < endKey) {
      keyRow = k_row(keyHead + key * step, 4u * (at % DQ));
      valueRow = v_row(keyHead + key * step, 4u * (at % DQ));
    }
    tiles[KEYS + (at / DQ) * ROW + at % DQ] = keyRow;
    tiles[VALUES + (at / DQ) * ROW + at % DQ] = valueRow;
  }

  var low: array<i32, RQ>;
  var high: array<i32, RQ>;
  var dkRows: array<vec4<f32>, RQ * CQ>;
  var dvRows: array<vec4<f32>, RQ * CQ>;
  let lastKey = min(firstKey + BQ, endKey) - 1u;
  if (thread == 0u) { atomicStore(&nonFinite, 0u); }
  for (var part = 0u; part < 1u + p.listed; part++) {
    var source: Source;
    if (part == 0u) {
      source = Source(false, sequence.query, kvHead, firstRow(sequence, firstKey), endRow(sequence, lastKey));
    } else {
      source = Source(true, p.entriesAt + lists[p.startsAt + list] * LIST_TILE, kvHead, 0, i32(lists[p.countsAt + list]));
    }
    for (var i = 0u; i < RQ; i++) {
      low[i] = select(source.first, firstRow(sequence, firstKey + ty + TY * i), part == 0u);
      high[i] = select(source.last, endRow(sequence, firstKey + ty + TY * i), part == 0u);
    }
    let allFirst = select(source.first, firstRow(sequence, lastKey), part == 0u);
    let allLast = select(source.last, endRow(sequence, firstKey), part == 0u);
    passQueries(tx, ty, source, allFirst, allLast, &low, &high, &dkRows, &dvRows);
  }

  for (var i = 0u; i < RQ; i++) {
    let key = firstKey + ty + TY * i;
    if (key >= endKey) { continue; }
    for (var n = 0u; n < CQ; n++) {
      let c = tx + NX * n;
      if (c >= DQ) { continue; }
      dk_put(keyHead + key * step, 4u * c, p.scale * dkRows[i * CQ + n]);
      dv_put(keyHead + key * step, 4u * c, dvRows[i * CQ + n]);
    }
  }
}

// The first row (query, query head of the group) that sees a key, and the row after the last.
fn firstRow(sequence: Sequence, key: u32) -> i32 {
  if (p.mask == ALL) { return 0; }
  return i32(p.group) * max(0, i32(key) + i32(sequence.queries) - i32(sequence.keys));
}

fn endRow(sequence: Sequence, key: u32) -> i32 {
  let beforeFirst = i32(sequence.keys) - i32(sequence.queries); // the position before the first query's, plus one
  var end = i32(sequence.queries);
  switch p.mask {
    case WINDOW: { end = min(end, i32(key + p.span) - beforeFirst); }
    case OWN_BLOCK: { end = min(end, i32((key / p.span + 1u) * p.span) - beforeFirst); }
    case NOTHING: { end = 0; }
    default: {}
  }
  return i32(p.group) * max(0, end);
}

// Rows of queries `first … last − 1`: of a sequence that begins at a token, or of a list that begins at a place of `lists`.
struct Source {
  listed: bool,
  begin: u32,
  kvHead: u32,
  first: i32,
  last: i32,
}

// A row's place in [T, H].
fn passingRow(source: Source, row: u32) -> u32 {
  if (source.listed) {
    let entry = (lists[source.begin + row] - 1u) / max(1u, p.slots);
    return (p.firstToken + entry / p.group) * (p.kvHeads * p.group) + source.kvHead * p.group + entry % p.group;
  }
  return (source.begin + row / p.group) * (p.kvHeads * p.group) + source.kvHead * p.group + row % p.group;
}

// dv += p dOut and dk += ds q over rows of queries. Every key is seen by all of those from `allFirst` to `allLast − 1`; of the
// others, key row i is seen by low[i] ≤ row < high[i].
fn passQueries(
  tx: u32, ty: u32, source: Source, allFirst: i32, allLast: i32,
  low: ptr<function, array<i32, RQ>>, high: ptr<function, array<i32, RQ>>,
  dkRows: ptr<function, array<vec4<f32>, RQ * CQ>>, dvRows: ptr<function, array<vec4<f32>, RQ * CQ>>,
) {
  let thread = ty * NX + tx;
  for (var row = source.first; row < source.last; row += i32(BK)) {
    let all = row >= allFirst && row + i32(BK) <= allLast;
    workgroupBarrier();
    for (var at = thread; at < BK * DQ; at += THREADS) {
      let j = at / DQ;
      let c = at % DQ;
      var query = vec4<f32>();
      var gradient = vec4<f32>();
      if (row + i32(j) < source.last) {
        let begin = passingRow(source, u32(row + i32(j))) * p.d;
        query = q_row(begin, 4u * c);
        gradient = dOut_row(begin, 4u * c);
      }
      if (!all) {
        noteNonFinite(query);
        noteNonFinite(gradient);
      }
      tiles[QUERIES + place(j) * ROW + c] = query;
      tiles[GRADIENTS + place(j) * ROW + c] = gradient;
    }
    for (var j = thread; j < BK; j += THREADS) {
      if (row + i32(j) < source.last) { statsOf[j] = stats[passingRow(source, u32(row + i32(j)))]; }
    }
    workgroupBarrier();
    var weights: array<vec4<f32>, RQ>;
    var gradients: array<vec4<f32>, RQ>;
    scoreRows(KEYS, QUERIES, tx, ty, &weights);
    scoreRows(VALUES, GRADIENTS, tx, ty, &gradients);
    let a = statsOf[4u * tx];
    let b = statsOf[4u * tx + 1u];
    let c = statsOf[4u * tx + 2u];
    let d = statsOf[4u * tx + 3u];
    for (var i = 0u; i < RQ; i++) {
      weights[i] = exp2Of4(weights[i] * (p.scale * LOG2_E) - vec4<f32>(a.x, b.x, c.x, d.x));
      gradients[i] = weights[i] * (gradients[i] - vec4<f32>(a.y, b.y, c.y, d.y));
      if (!all) {
        let seen = visible((*low)[i], (*high)[i], row + i32(4u * tx));
        weights[i] = select(vec4<f32>(), weights[i], seen);
        gradients[i] = select(vec4<f32>(), gradients[i], seen);
      }
    }
    storeWeights(WEIGHTS, tx, ty, &weights);
    storeWeights(SCORE_GRADIENTS, tx, ty, &gradients);
    workgroupBarrier();
    accumulateVisible(WEIGHTS, GRADIENTS, tx, ty, low, high, row, dvRows);
    accumulateVisible(SCORE_GRADIENTS, QUERIES, tx, ty, low, high, row, dkRows);
  }
}
