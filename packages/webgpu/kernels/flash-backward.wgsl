// dq of a tile of queries over a stream of key tiles, probabilities recomputed from the log-sum-exp (arXiv 2205.14135, appendix B).

const QUERIES = 0u;
const GRADIENTS = BQ * ROW;
const KEYS = GRADIENTS + BQ * ROW;
const VALUES = KEYS + BK * ROW;
const WEIGHTS = VALUES + BK * ROW;
const TILE_QUADS = WEIGHTS + BQ * WEIGHT_ROW;

// Row `row` of [T, H] as row `r` of the tiles of queries, times scale · log2 e, and of their gradients.
fn loadQuery(r: u32, c: u32, row: u32, valid: bool) {
  var query = vec4<f32>();
  var gradient = vec4<f32>();
  if (valid) {
    query = q_row(row * p.d, 4u * c) * (p.scale * LOG2_E);
    gradient = dOut_row(row * p.d, 4u * c);
  }
  tiles[QUERIES + r * ROW + c] = query;
  tiles[GRADIENTS + r * ROW + c] = gradient;
}

// sums += Σ_j ds_ij k_j over keys `first … last − 1`; arguments as those of attendKeys. `rowStats` is each row's entry of stats.
fn gradientOverKeys(
  tx: u32, ty: u32, begin: u32, step: u32, first: i32, last: i32, allFirst: i32, allLast: i32,
  low: ptr<function, array<i32, RQ>>, high: ptr<function, array<i32, RQ>>, rowStats: ptr<function, array<vec2<f32>, RQ>>,
  sums: ptr<function, array<vec4<f32>, RQ * CQ>>,
) {
  let thread = ty * NX + tx;
  if (thread == 0u) { atomicStore(&nonFinite, 0u); }
  for (var key = first; key < last; key += i32(BK)) {
    let all = key >= allFirst && key + i32(BK) <= allLast;
    workgroupBarrier();
    for (var at = thread; at < BK * DQ; at += THREADS) {
      let j = at / DQ;
      let c = at % DQ;
      var keyRow = vec4<f32>();
      var valueRow = vec4<f32>();
      if (key + i32(j) < last) {
        keyRow = k_row(begin + u32(key + i32(j)) * step, 4u * c);
        valueRow = v_row(begin + u32(key + i32(j)) * step, 4u * c);
      }
      if (!all) { noteNonFinite(keyRow); }
      tiles[KEYS + place(j) * ROW + c] = keyRow;
      tiles[VALUES + place(j) * ROW + c] = valueRow;
    }
    workgroupBarrier();
    var weights: array<vec4<f32>, RQ>;
    var products: array<vec4<f32>, RQ>;
    scoreRows(QUERIES, KEYS, tx, ty, &weights);
    scoreRows(GRADIENTS, VALUES, tx, ty, &products);
    for (var i = 0u; i < RQ; i++) {
      weights[i] = exp2Of4(weights[i] - vec4<f32>((*rowStats)[i].x)) * (products[i] - vec4<f32>((*rowStats)[i].y));
      if (!all) {
        weights[i] = select(vec4<f32>(), weights[i], visible((*low)[i], (*high)[i], key + i32(4u * tx)));
      }
    }
    storeWeights(WEIGHTS, tx, ty, &weights);
    workgroupBarrier();
    accumulateVisible(WEIGHTS, KEYS, tx, ty, low, high, key, sums);
  }
}
