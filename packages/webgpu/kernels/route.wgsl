// The best blocks of each query by q · centroid: scores tile by tile, and a running list of the best of each row, which one thread keeps.
// A block comes after the lower ones, so only a higher score takes a place: of equal scores the lower block wins.

const QUERIES = 0u;
const CENTROIDS = BQ;
const TILE_ROWS = CENTROIDS + BK;
const WEIGHTS = 0u;
const WEIGHT_ROWS = BQ;

// Below every score that counts: what empty places of a running list have.
const NO_SCORE = -3.4e38;

// Centroids of a sequence from centroid `begin` on, up to `end` − 1.
struct CentroidRange {
  begin: u32,
  kvHead: u32,
  end: i32,
}

fn fetchCentroids(
  turn: u32, thread: u32, range: CentroidRange, first: i32, rows: ptr<function, array<vec4<f32>, FETCHED>>,
) {
  @unroll for (var n = 0u; n < FETCHED; n++) {
    let at = fetchedAt(turn, n, thread);
    let centroid = range.begin + u32(min(first + i32(at / DQ), range.end - 1));
    (*rows)[n] = centroids_row((centroid * p.kvHeads + range.kvHead) * p.d, 4u * (at % DQ));
  }
}

fn storeCentroids(
  turn: u32, thread: u32, range: CentroidRange, first: i32, rows: ptr<function, array<vec4<f32>, FETCHED>>,
) {
  @unroll for (var n = 0u; n < FETCHED; n++) {
    let at = fetchedAt(turn, n, thread);
    let row = select(vec4<f32>(), (*rows)[n], first + i32(at / DQ) < range.end);
    tiles[CENTROIDS + place(at / DQ)][at % DQ] = row;
  }
}

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
  for (var turn = 0u; turn < OWNED_TURNS; turn++) {
    var rows: array<vec4<f32>, FETCHED>;
    @unroll for (var n = 0u; n < FETCHED; n++) {
      let at = fetchedAt(turn, n, thread);
      let row = min(item.firstRow + at / DQ, item.endRow - 1u);
      rows[n] = q_row(outputRow(sequence, kvHead, row) * p.d, 4u * (at % DQ));
    }
    @unroll for (var n = 0u; n < FETCHED; n++) {
      let at = fetchedAt(turn, n, thread);
      tiles[QUERIES + at / DQ][at % DQ] = select(vec4<f32>(), rows[n], item.firstRow + at / DQ < item.endRow);
    }
  }
  // The row whose list this thread keeps: there are at least as many threads as rows.
  let row = item.firstRow + thread;
  let isRow = thread < BQ && row < item.endRow;
  let position = positionOf(sequence, row);
  let own = max(0, position) / i32(p.span);
  let choosable = select(blocks, own, p.causal != 0u);
  var list: Kept;
  if (isRow) { beginKept(index, thread, &list); }

  // Causal queries choose among the blocks before their own.
  let lastPosition = positionOf(sequence, min(item.firstRow + BQ, item.endRow) - 1u);
  let most = select(blocks, max(0, lastPosition) / i32(p.span), p.causal != 0u);
  let begin = max(0, i32(p.firstCentroid) - i32(firstCentroid));
  let end = min(most, i32(p.endCentroid) - i32(firstCentroid));
  var rows: array<vec4<f32>, FETCHED>;
  let centroidRows = CentroidRange(firstCentroid, kvHead, end);
  if (begin < end) { fetchCentroids(0u, thread, centroidRows, begin, &rows); }
  for (var first = begin; first < end; first += i32(BK)) {
    workgroupBarrier();
    storeCentroids(0u, thread, centroidRows, first, &rows);
    for (var turn = 1u; turn < PASSING_TURNS; turn++) {
      fetchCentroids(turn, thread, centroidRows, first, &rows);
      storeCentroids(turn, thread, centroidRows, first, &rows);
    }
    fetchCentroids(0u, thread, centroidRows, first + i32(BK), &rows);
    workgroupBarrier();
    var scores: array<vec4<f32>, RQ>;
    scoreRows(QUERIES, CENTROIDS, tx, ty, &scores);
    storeWeights(WEIGHTS, tx, ty, &scores);
    workgroupBarrier();
    if (isRow) {
      // After the first tiles hardly any score is among the best: those of this tile that are, as bits.
      var better = 0u;
      let least = leastKept(index, thread, &list);
      @unroll for (var j = 0u; j < NX; j++) {
        let isBetter = rankable(weightTiles[WEIGHTS + thread][j]) > vec4<f32>(least);
        let bits = select(vec4<u32>(), vec4<u32>(1u, 2u, 4u, 8u) << vec4<u32>(4u * j), isBetter);
        better |= bits.x | bits.y | bits.z | bits.w;
      }
      let count = clamp(min(end, choosable) - first, 0, i32(BK));
      better &= select(0xffffffffu, (1u << u32(count)) - 1u, count < 32);
      while (better != 0u) {
        let j = countTrailingZeros(better);
        better &= better - 1u;
        let four = rankable(weightTiles[WEIGHTS + thread][j >> 2u]);
        insertKept(index, thread, four[j & 3u], first + i32(j), &list);
      }
    }
  }
  if (!isRow || p.finishes == 0u) { return; }

  let used = select(min(p.choices, u32(choosable)), 0u, p.causal != 0u && position < 0);
  let to = outputRow(sequence, kvHead, row) * p.slots - p.indices_from;
  writeKept(index, thread, to, used, &list);
  for (var n = used; n < p.slots; n++) { indices[to + n] = -1; }
  if (p.causal != 0u && position >= 0) { indices[to + used] = own; }
}

// NaN counts as −Infinity; −Infinity as the lowest score there is.
fn rankable(scores: vec4<f32>) -> vec4<f32> {
  return select(max(scores, vec4<f32>(LOWEST)), vec4<f32>(LOWEST), isNan4(scores));
}
