// The gradients of attention by blocks of keys, probabilities recomputed from the log-sum-exp (arXiv 2205.14135, appendix B). A workgroup
// has a block's keys, and a piece of the rows of queries that see them: rows of a sequence, or entries of the block's list. What
// they give to dk and dv it sums up in `parts`; what the block gives to each row's dq it sums up in a slot of the row's.

const KEYS = 0u;
const VALUES = BQ;
const QUERIES = VALUES + BQ;
const GRADIENTS = QUERIES + BK;
const TILE_ROWS = GRADIENTS + BK;
const WEIGHTS = 0u;
const SCORE_GRADIENTS = BQ;
const WEIGHT_ROWS = 2u * BQ;

var<workgroup> statsOf: array<vec2<f32>, BK>;
// Where each passing row's query begins, and the place of its slot. Beyond the last row: that row's query, and NOWHERE.
var<workgroup> beginOf: array<u32, BK>;
var<workgroup> placeOf: array<u32, BK>;

@compute @workgroup_size(NX * TY)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let item = itemAt(index);
  if (!item.exists) { return; }
  var source = item.source;
  let sequence = sequenceOf(item.block, 4u);
  let blockKey = (item.block - sequence.firstBlock) * p.blockSize;
  let blockEnd = min(blockKey + p.blockSize, sequence.keys);
  let tx = columnOf(thread);
  let ty = rowOf(thread);
  let keyHead = (sequence.key * p.kvHeads + p.firstHead + item.head) * p.d;
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
    for (var turn = select(1u, 0u, item.own); turn < select(1u, 2u, LISTED); turn++) {
      var rows = source;
      if (turn == 0u) {
        rows = rowsOfSequence(sequence, item, firstKey, endKey, touched);
        touched = max(touched, rows.end);
      }
      passQueries(thread, sequence, item.head, item.block, rows, firstKey, endKey, &dk, &dv);
    }
    source.touched = source.end;
    @unroll for (var i = 0u; i < RQ; i++) {
      let key = firstKey + ty + TY * i;
      let at = (item.piece * p.blockSize + key - blockKey) * (2u * DQ);
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

// Whether a passing row sees a key of the tile.
fn sees(sequence: Sequence, source: Source, row: i32, key: u32, endKey: u32) -> bool {
  let rows = rowsThatSee(sequence, source, key);
  return key < endKey && row >= rows.x && row < rows.y;
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
  // Key row i is seen by rows low[i] … high[i] − 1; every key by those from allFirst to allEnd − 1.
  var low: array<i32, RQ>;
  var high: array<i32, RQ>;
  @unroll for (var i = 0u; i < RQ; i++) {
    let key = firstKey + ty + TY * i;
    let rows = rowsThatSee(sequence, source, key);
    low[i] = rows.x;
    high[i] = select(rows.x, rows.y, key < endKey);
  }
  let allFirst = rowsThatSee(sequence, source, endKey - 1u).x;
  let allEnd = select(allFirst, rowsThatSee(sequence, source, firstKey).y, endKey == firstKey + BQ);
  var ahead = Passing(0u, NOWHERE, vec2<f32>());
  if (source.first < source.end) {
    ahead = passingRow(sequence, head, block, source, source.first + i32(thread));
  }
  for (var row = source.first; row < source.end; row += i32(BK)) {
    let all = row >= allFirst && row + i32(BK) <= allEnd;
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
