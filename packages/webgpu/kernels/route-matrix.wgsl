// route.wgsl on matrix units: f16 queries, and centroids as two f16 each (centroid-halves.wgsl), so that scores are as good as float32's.
// A subgroup of 32 has as many rows; a lane keeps the running list of one.

const HALVES_PITCH = 2u * EIGHTS + 1u;
const NO_SCORE = -3.4e38; // as in route.wgsl
const LOWER = 0.00048828125; // what lower parts count, 2^-11

// The centroids of a chunk, upper part and lower part; then a scratch of each subgroup: queries and scores pass between lanes and matrices in it.
const OTHERS = CHUNK * HALVES_PITCH;
var<workgroup> memory: array<vec4<u32>, OTHERS + SUBGROUP_COUNT * SCRATCH>;
var<workgroup> nonFinite: atomic<u32>; // whether a query is not finite

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32,
  @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32,
) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let at = p.firstItem + 2u * (index / p.kvHeads);
  let item = Item(plan[at].x, plan[at].y, plan[at].z, plan[at + 1u].x, plan[at + 1u].y, plan[at + 1u].z);
  let kvHead = index % p.kvHeads;
  let sequence = sequenceAt(item.sequence);
  let firstCentroid = plan[2u * item.sequence + 1u].x;
  let blocks = i32(plan[2u * item.sequence + 1u].y);
  let width = p.d / 8u;
  let rowIndex = item.firstRow + subgroup * ROWS + lane;
  let isRow = rowIndex < item.endRow;
  let row = min(rowIndex, item.endRow - 1u);
  let output = outputRow(sequence, kvHead, row);
  let scratch = OTHERS + subgroup * SCRATCH;

  let lastPosition = positionOf(sequence, min(item.firstRow + BQ, item.endRow) - 1u);
  let end = select(blocks, max(0, lastPosition) / i32(p.span), p.causal != 0u);
  var halvesRows: array<vec4<u32>, FETCHED>;
  let origin = (firstCentroid * p.kvHeads + kvHead) * 2u * width;
  if (end > 0) {
    @unroll for (var n = 0u; n < FETCHED; n++) { halvesRows[n] = halves[halvesFrom(n * THREADS + thread, origin, end, width)]; }
  }
  if (thread == 0u) { atomicStore(&nonFinite, 0u); }
  workgroupBarrier();
  var left0: array<Left, 2 * PAIRS>;
  var left1: array<Left, 2 * PAIRS>;
  var queries: array<vec4<u32>, 4 * PAIRS>;
  @unroll for (var pair = 0u; pair < PAIRS; pair++) {
    @unroll for (var i = 0u; i < 4u; i++) {
      let to = subgroupShuffle(output, 8u * i + lane / 4u);
      let c = 4u * pair + lane % 4u;
      queries[4u * pair + i] = vec4<u32>();
      if (c < width) { queries[4u * pair + i] = q[to * width + c - p.q_from]; }
      if (!isFinite(queries[4u * pair + i])) { atomicStore(&nonFinite, 1u); }
    }
  }
  @unroll for (var pair = 0u; pair < PAIRS; pair++) {
    @unroll for (var i = 0u; i < 4u; i++) {
      memory[scratch + (8u * i + lane / 4u) * SCRATCH_PITCH + lane % 4u] = queries[4u * pair + i];
    }
    workgroupBarrier();
    @unroll for (var n = 0u; n < 2u; n++) {
      left0[2u * pair + n] = subgroupMatrixLoad<Left, row_major>(&memory, scratch + 2u * n, SCRATCH_PITCH);
      left1[2u * pair + n] = subgroupMatrixLoad<Left, row_major>(&memory, scratch + SIDE * SCRATCH_PITCH + 2u * n, SCRATCH_PITCH);
    }
    workgroupBarrier();
  }
  let position = positionOf(sequence, row);
  let own = max(0, position) / i32(p.span);
  let choosable = select(blocks, own, p.causal != 0u);
  let ours = scratch + lane * SCRATCH_PITCH;
  var list: Kept;
  beginKept(index, lane, &list);

  @unroll for (var n = 0u; n < FETCHED; n++) {
    let at = n * THREADS + thread;
    if (at < CHUNK * 2u * EIGHTS) { memory[at / (2u * EIGHTS) * HALVES_PITCH + at % (2u * EIGHTS)] = select(vec4<u32>(), halvesRows[n], at % EIGHTS < width); }
  }
  workgroupBarrier();
  for (var first = 0; first < end; first += i32(CHUNK)) {
    let next = u32(first) + CHUNK;
    @unroll for (var n = 0u; n < FETCHED; n++) {
      halvesRows[n] = halves[halvesFrom(next * 2u * EIGHTS + n * THREADS + thread, origin, end, width)];
    }
    var score0 = Sum();
    var score1 = Sum();
    @unroll for (var c = 0u; c < STEPS; c++) {
      let lower = subgroupMatrixLoad<Right, col_major>(&memory, EIGHTS + 2u * c, HALVES_PITCH);
      score0 = subgroupMatrixMultiplyAccumulate(left0[c], lower, score0);
      score1 = subgroupMatrixMultiplyAccumulate(left1[c], lower, score1);
    }
    score0 = subgroupMatrixScalarMultiply(score0, LOWER);
    score1 = subgroupMatrixScalarMultiply(score1, LOWER);
    @unroll for (var c = 0u; c < STEPS; c++) {
      let upper = subgroupMatrixLoad<Right, col_major>(&memory, 2u * c, HALVES_PITCH);
      score0 = subgroupMatrixMultiplyAccumulate(left0[c], upper, score0);
      score1 = subgroupMatrixMultiplyAccumulate(left1[c], upper, score1);
    }
    subgroupMatrixStore<row_major>(&memory, scratch, score0, SCRATCH_PITCH);
    subgroupMatrixStore<row_major>(&memory, scratch + SIDE * SCRATCH_PITCH, score1, SCRATCH_PITCH);
    workgroupBarrier();
    @unroll for (var n = 0u; n < FETCHED; n++) {
      let at = n * THREADS + thread;
      if (at < CHUNK * 2u * EIGHTS) { memory[at / (2u * EIGHTS) * HALVES_PITCH + at % (2u * EIGHTS)] = select(vec4<u32>(), halvesRows[n], at % EIGHTS < width); }
    }
    if (isRow) {
      if (atomicLoad(&nonFinite) != 0u) { scoreAgain(ours, output * width, origin, u32(first), u32(end), width); }
      var better = 0u;
      let least = leastKept(index, lane, &list);
      @unroll for (var j = 0u; j < 4u; j++) {
        let isBetter = rankable(bitcast<vec4<f32>>(memory[ours + j])) > vec4<f32>(least);
        let bits = select(vec4<u32>(), vec4<u32>(1u, 2u, 4u, 8u) << vec4<u32>(4u * j), isBetter);
        better |= bits.x | bits.y | bits.z | bits.w;
      }
      let count = clamp(min(end, choosable) - first, 0, i32(CHUNK));
      better &= (1u << u32(count)) - 1u;
      while (better != 0u) {
        let j = countTrailingZeros(better);
        better &= better - 1u;
        let score = rankable(vec4<f32>(bitcast<f32>(memory[ours + (j >> 2u)][j & 3u]))).x;
        insertKept(index, lane, score, first + i32(j), &list);
      }
    }
    workgroupBarrier();
  }
  if (!isRow) { return; }
  let used = select(min(p.choices, u32(choosable)), 0u, p.causal != 0u && position < 0);
  let to = output * p.slots - p.indices_from;
  writeKept(index, lane, to, used, &list);
  for (var n = used; n < p.slots; n++) { indices[to + n] = -1; }
  if (p.causal != 0u && position >= 0) { indices[to + used] = own; }
}

// Where a group of the centroids is, counted from their first: of those that do not exist, one that does.
fn halvesFrom(at: u32, origin: u32, end: i32, width: u32) -> u32 {
  let half = at / EIGHTS % 2u;
  return origin + min(at / (2u * EIGHTS), u32(end) - 1u) * p.kvHeads * 2u * width + half * width + min(at % EIGHTS, width - 1u);
}

fn isFinite(eight: vec4<u32>) -> bool {
  return all((eight & vec4<u32>(0x7c00u)) != vec4<u32>(0x7c00u)) &&
    all((eight & vec4<u32>(0x7c000000u)) != vec4<u32>(0x7c000000u));
}

// The scores of a row whose query begins at `begin`, each part of a centroid's element added to the other first: an infinite query by
// both would be NaN.
fn scoreAgain(ours: u32, begin: u32, origin: u32, first: u32, end: u32, width: u32) {
  for (var j = 0u; j < CHUNK; j++) {
    var score = 0.0;
    for (var c = 0u; c < width; c++) {
      let query = q[begin + c - p.q_from];
      let upper = halves[halvesFrom((first + j) * 2u * EIGHTS + c, origin, i32(end), width)];
      let lower = halves[halvesFrom((first + j) * 2u * EIGHTS + EIGHTS + c, origin, i32(end), width)];
      for (var n = 0u; n < 4u; n++) {
        score += dot(unpack2x16float(query[n]), unpack2x16float(upper[n]) + LOWER * unpack2x16float(lower[n]));
      }
    }
    memory[ours + j / 4u][j % 4u] = bitcast<u32>(score);
  }
}

// As in route.wgsl.
fn rankable(scores: vec4<f32>) -> vec4<f32> {
  return select(max(scores, vec4<f32>(LOWEST)), vec4<f32>(LOWEST), isNan4(scores));
}
