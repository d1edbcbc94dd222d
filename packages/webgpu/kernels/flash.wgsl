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
  for (var i = 0u; i < RQ; i++) {
    (*maximum)[i] = LOWEST;
    (*sum)[i] = 0.0;
  }
  for (var i = 0u; i < RQ * CQ; i++) { (*out)[i] = vec4<f32>(); }
}

// Keys `first … last − 1` of the key head that begins at element `begin`, `step` elements a token. Every row sees all of those
// from `allFirst` to `allLast − 1`; of the others, row i sees low[i] ≤ key < high[i].
fn attendKeys(
  tx: u32, ty: u32, begin: u32, step: u32, first: i32, last: i32, allFirst: i32, allLast: i32,
  low: ptr<function, array<i32, RQ>>, high: ptr<function, array<i32, RQ>>,
  maximum: ptr<function, array<f32, RQ>>, sum: ptr<function, array<f32, RQ>>,
  out: ptr<function, array<vec4<f32>, RQ * CQ>>,
) {
  let thread = ty * NX + tx;
  if (thread == 0u) { atomicStore(&nonFinite, 0u); }
  for (var key = first; key < last; key += i32(BK)) {
    let all = key >= allFirst && key + i32(BK) <= allLast;
    workgroupBarrier();
    for (var at = thread; at < BK * DQ; at += THREADS) {
      let j = at / DQ;
      let c = at % DQ;
      var row = vec4<f32>();
      if (key + i32(j) < last) { row = k_row(begin + u32(key + i32(j)) * step, 4u * c); }
      tiles[KEYS + place(j)][c] = row;
    }
    workgroupBarrier();
    var scores: array<vec4<f32>, RQ>;
    scoreRows(QUERIES, KEYS, tx, ty, &scores);
    var most: array<f32, RQ>;
    for (var i = 0u; i < RQ; i++) {
      if (!all) {
        scores[i] = select(vec4<f32>(LOWEST), scores[i], visible((*low)[i], (*high)[i], key + i32(4u * tx)));
      }
      most[i] = max(max(scores[i].x, scores[i].y), max(scores[i].z, scores[i].w));
    }
    rowMax(tx, ty, &most);
    for (var at = thread; at < BK * DQ; at += THREADS) {
      let j = at / DQ;
      let c = at % DQ;
      var row = vec4<f32>();
      if (key + i32(j) < last) { row = v_row(begin + u32(key + i32(j)) * step, 4u * c); }
      if (!all) { noteNonFinite(row); }
      tiles[KEYS + place(j)][c] = row;
    }
    for (var i = 0u; i < RQ; i++) {
      let next = max((*maximum)[i], most[i]);
      let factor = exp2Of((*maximum)[i] - next);
      scores[i] = exp2Of4(scores[i] - vec4<f32>(next));
      if (!all) {
        scores[i] = select(vec4<f32>(), scores[i], visible((*low)[i], (*high)[i], key + i32(4u * tx)));
      }
      (*maximum)[i] = next;
      (*sum)[i] = (*sum)[i] * factor + ((scores[i].x + scores[i].y) + (scores[i].z + scores[i].w));
      for (var n = 0u; n < CQ; n++) { (*out)[i * CQ + n] *= factor; }
    }
    storeWeights(WEIGHTS, tx, ty, &scores);
    workgroupBarrier();
    accumulateVisible(WEIGHTS, KEYS, tx, ty, low, high, key, out);
  }
  workgroupBarrier();
  rowSum(tx, ty, sum);
}
