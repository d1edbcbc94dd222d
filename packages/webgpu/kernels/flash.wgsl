// Online softmax over a stream of key tiles (arXiv 2205.14135), for a tile of queries in workgroup memory, in base 2.

const QUERIES = 0u;
const KEYS = BQ;
const TILE_ROWS = KEYS + BK;
const WEIGHTS = 0u;
const WEIGHT_ROWS = BQ;

// What the softmax of a thread's rows has come to: `maximum`, `sum` over the thread's own keys, unnormalized `out`.
fn startSoftmax(
  maximum: ptr<function, array<f32, RQ>>, sum: ptr<function, array<f32, RQ>>,
  out: ptr<function, array<vec4<f32>, RQ * CQ>>,
) {
  @unroll for (var i = 0u; i < RQ; i++) {
    (*maximum)[i] = LOWEST;
    (*sum)[i] = 0.0;
    @unroll for (var n = 0u; n < CQ; n++) { (*out)[i * CQ + n] = vec4<f32>(); }
  }
}

// Where the keys of a head are: they begin at element `begin`, `step` elements a token, up to token `last` − 1.
struct KeyRange {
  begin: u32,
  step: u32,
  last: i32,
}

fn fetchKeys(turn: u32, thread: u32, keys: KeyRange, key: i32, rows: ptr<function, array<vec4<f32>, FETCHED>>) {
  @unroll for (var n = 0u; n < FETCHED; n++) {
    let at = fetchedAt(turn, n, thread);
    (*rows)[n] = k_row(keys.begin + u32(min(key + i32(at / DQ), keys.last - 1)) * keys.step, 4u * (at % DQ));
  }
}

fn storeKeys(
  turn: u32, thread: u32, keys: KeyRange, key: i32, rows: ptr<function, array<vec4<f32>, FETCHED>>,
) {
  @unroll for (var n = 0u; n < FETCHED; n++) {
    let at = fetchedAt(turn, n, thread);
    let row = select(vec4<f32>(), (*rows)[n], key + i32(at / DQ) < keys.last);
    tiles[KEYS + place(at / DQ)][at % DQ] = row;
  }
}

fn fetchValues(turn: u32, thread: u32, keys: KeyRange, key: i32, rows: ptr<function, array<vec4<f32>, FETCHED>>) {
  @unroll for (var n = 0u; n < FETCHED; n++) {
    let at = fetchedAt(turn, n, thread);
    (*rows)[n] = v_row(keys.begin + u32(min(key + i32(at / DQ), keys.last - 1)) * keys.step, 4u * (at % DQ));
  }
}

fn storeValues(
  turn: u32, thread: u32, keys: KeyRange, key: i32, all: bool, rows: ptr<function, array<vec4<f32>, FETCHED>>,
) {
  @unroll for (var n = 0u; n < FETCHED; n++) {
    let at = fetchedAt(turn, n, thread);
    let row = select(vec4<f32>(), (*rows)[n], key + i32(at / DQ) < keys.last);
    if (!all) { noteNonFinite(row); }
    tiles[KEYS + place(at / DQ)][at % DQ] = row;
  }
}

// Keys `first` to `keys.last` − 1. Every row sees all of those from `allFirst` to `allLast − 1`; of the others, row i sees
// low[i] ≤ key < high[i]. `rows` are what was fetched of the first tile; of each other it is fetched while the one before is worked at.
fn attendKeys(
  thread: u32, tx: u32, ty: u32, keys: KeyRange, first: i32, allFirst: i32, allLast: i32,
  rows: ptr<function, array<vec4<f32>, FETCHED>>,
  low: ptr<function, array<i32, RQ>>, high: ptr<function, array<i32, RQ>>,
  maximum: ptr<function, array<f32, RQ>>, sum: ptr<function, array<f32, RQ>>,
  out: ptr<function, array<vec4<f32>, RQ * CQ>>,
) {
  if (thread == 0u) { atomicStore(&nonFinite, 0u); }
  for (var key = first; key < keys.last; key += i32(BK)) {
    let all = key >= allFirst && key + i32(BK) <= allLast;
    workgroupBarrier();
    storeKeys(0u, thread, keys, key, rows);
    for (var turn = 1u; turn < PASSING_TURNS; turn++) {
      fetchKeys(turn, thread, keys, key, rows);
      storeKeys(turn, thread, keys, key, rows);
    }
    fetchValues(0u, thread, keys, key, rows);
    workgroupBarrier();
    var scores: array<vec4<f32>, RQ>;
    scoreRows(QUERIES, KEYS, tx, ty, &scores);
    var most: array<f32, RQ>;
    @unroll for (var i = 0u; i < RQ; i++) {
      if (!all) {
        scores[i] = select(vec4<f32>(LOWEST), scores[i], visible((*low)[i], (*high)[i], key + i32(4u * tx)));
      }
      most[i] = max(max(scores[i].x, scores[i].y), max(scores[i].z, scores[i].w));
    }
    rowMax(tx, ty, &most);
    storeValues(0u, thread, keys, key, all, rows);
    for (var turn = 1u; turn < PASSING_TURNS; turn++) {
      fetchValues(turn, thread, keys, key, rows);
      storeValues(turn, thread, keys, key, all, rows);
    }
    fetchKeys(0u, thread, keys, key + i32(BK), rows);
    @unroll for (var i = 0u; i < RQ; i++) {
      let next = max((*maximum)[i], most[i]);
      let factor = exp2Of((*maximum)[i] - next);
      scores[i] = exp2Of4(scores[i] - vec4<f32>(next));
      if (!all) {
        scores[i] = select(vec4<f32>(), scores[i], visible((*low)[i], (*high)[i], key + i32(4u * tx)));
      }
      (*maximum)[i] = next;
      (*sum)[i] = (*sum)[i] * factor + ((scores[i].x + scores[i].y) + (scores[i].z + scores[i].w));
      @unroll for (var n = 0u; n < CQ; n++) { (*out)[i * CQ + n] *= factor; }
    }
    storeWeights(WEIGHTS, tx, ty, &scores);
    workgroupBarrier();
    accumulateVisible(WEIGHTS, KEYS, tx, ty, low, high, key, out);
  }
  workgroupBarrier();
  rowSum(tx, ty, sum);
}
