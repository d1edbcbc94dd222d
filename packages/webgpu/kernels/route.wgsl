// The best blocks of each query by q · centroid: scores tile by tile, and a running list of the best of each row. A block comes
// after the lower ones, so only a higher score takes a place: of equal scores the lower block wins.

const QUERIES = 0u;
const CENTROIDS = BQ;
const TILE_ROWS = CENTROIDS + BK;
const WEIGHTS = 0u;
const WEIGHT_ROWS = BQ;

@compute @workgroup_size(NX * TY)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let at = p.firstItem + 2u * (index / p.kvHeads);
  let item = Item(plan[at].x, plan[at].y, plan[at].z, plan[at + 1u].x, plan[at + 1u].y, plan[at + 1u].z);
  let kvHead = index % p.kvHeads;
  let sequence = sequenceAt(item.sequence);
  let firstCentroid = plan[2u * item.sequence + 1u].x;
  let blocks = i32(plan[2u * item.sequence + 1u].y);
  let tx = columnOf(thread);
  let ty = rowOf(thread);
  for (var at = thread; at < BQ * DQ; at += THREADS) {
    let row = item.firstRow + at / DQ;
    var channels = vec4<f32>();
    if (row < item.endRow) { channels = q_row(outputRow(sequence, kvHead, row) * p.d, 4u * (at % DQ)); }
    tiles[QUERIES + at / DQ][at % DQ] = channels;
  }
  if (p.begins != 0u) {
    for (var r = thread; r < BQ; r += THREADS) {
      for (var n = 0u; n < KEPT; n++) { keep(index, r, n, LOWEST, -1); }
    }
  }

  // Causal queries choose among the blocks before their own.
  let lastPosition = positionOf(sequence, min(item.firstRow + BQ, item.endRow) - 1u);
  let most = select(blocks, max(0, lastPosition) / i32(p.span), (p.causal != 0u));
  let begin = max(0, i32(p.firstCentroid) - i32(firstCentroid));
  let end = min(most, i32(p.endCentroid) - i32(firstCentroid));
  for (var first = begin; first < end; first += i32(BK)) {
    workgroupBarrier();
    for (var at = thread; at < BK * DQ; at += THREADS) {
      let j = at / DQ;
      var channels = vec4<f32>();
      if (first + i32(j) < end) {
        channels = centroids_row(((firstCentroid + u32(first) + j) * p.kvHeads + kvHead) * p.d, 4u * (at % DQ));
      }
      tiles[CENTROIDS + place(j)][at % DQ] = channels;
    }
    workgroupBarrier();
    var scores: array<vec4<f32>, RQ>;
    scoreRows(QUERIES, CENTROIDS, tx, ty, &scores);
    storeWeights(WEIGHTS, tx, ty, &scores);
    workgroupBarrier();
    for (var r = thread; r < BQ; r += THREADS) {
      let row = item.firstRow + r;
      if (row >= item.endRow) { continue; }
      let own = max(0, positionOf(sequence, row)) / i32(p.span);
      let count = min(p.choices, u32(select(blocks, own, (p.causal != 0u))));
      let last = min(end, select(blocks, own, (p.causal != 0u)));
      if (count == 0u) { continue; }
      var least = keptScore(index, r, count - 1u);
      for (var j = 0; j < i32(BK) && first + j < last; j += 4) {
        let four = rankable(weightTiles[WEIGHTS + r][u32(j) / 4u]);
        // After the first tiles hardly any score is among the best.
        if (first + j >= i32(count) && all(four <= vec4<f32>(least))) { continue; }
        for (var e = 0; e < 4 && first + j + e < last; e++) {
          let block = first + j + e;
          if (block >= i32(count) && four[e] <= least) { continue; }
          var n = min(count - 1u, u32(block));
          while (n > 0u && four[e] > keptScore(index, r, n - 1u)) {
            keep(index, r, n, keptScore(index, r, n - 1u), keptBlock(index, r, n - 1u));
            n -= 1u;
          }
          keep(index, r, n, four[e], block);
          least = keptScore(index, r, count - 1u);
        }
      }
    }
  }
  if (p.finishes == 0u) { return; }
  workgroupBarrier();

  for (var r = thread; r < BQ; r += THREADS) {
    let row = item.firstRow + r;
    if (row >= item.endRow) { continue; }
    let position = positionOf(sequence, row);
    let at = outputRow(sequence, kvHead, row) * p.slots;
    let own = max(0, position) / i32(p.span);
    var used = min(p.choices, u32(select(blocks, own, (p.causal != 0u))));
    if ((p.causal != 0u) && position < 0) { used = 0u; }
    for (var n = 0u; n < p.slots; n++) {
      var block = -1;
      if (n < used) { block = keptBlock(index, r, n); }
      if ((p.causal != 0u) && n == used && position >= 0) { block = own; }
      indices[at + n - p.indices_from] = block;
    }
  }
}

// NaN counts as −Infinity; −Infinity as the lowest score there is.
fn rankable(scores: vec4<f32>) -> vec4<f32> {
  return select(max(scores, vec4<f32>(LOWEST)), vec4<f32>(LOWEST), isNan4(scores));
}
