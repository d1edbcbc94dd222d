// attend.wgsl on tensor cores: f16 queries, keys, values and probabilities, float32 sums. A workgroup holds a whole block of at
// most MOST_KEYS keys, so that a row's maximum is known before its probabilities are rounded, and nothing has to be rescaled.

const THREADS = 128u;
const ROW_THREADS = THREADS / BQ;
const SIDE = 16u; // of a matrix; BQ is twice that
const PITCH = DQ * 4u + 8u; // elements from row to row, some more than needed against bank conflicts
const SCORE_PITCH = MOST_KEYS + 4u;
const WEIGHT_PITCH = MOST_KEYS + 8u;
const LOG2_E = 1.4426950408889634;
const LOWEST = -3.0e38;

var<workgroup> entryOf: array<u32, BQ>;
var<workgroup> beginOf: array<u32, BQ>; // where each entry's query begins
var<workgroup> queries: array<f16, BQ * PITCH>;
var<workgroup> others: array<f16, MOST_KEYS * PITCH>; // keys, then values
var<workgroup> scores: array<f32, BQ * SCORE_PITCH>; // then outputs
var<workgroup> weights: array<f16, BQ * WEIGHT_PITCH>;
var<workgroup> factors: array<f32, BQ>; // what a row's output is to be multiplied by

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32,
  @builtin(subgroup_size) subgroupSize: u32,
) {
  let tile = group_index(group);
  if (tile >= lists[p.startsAt + p.listCount]) { return; }
  let list = lists[p.tilesAt + tile];
  let head = list / p.blocks;
  let block = list % p.blocks;
  if (block < p.firstBlock || block >= p.endBlock) { return; }
  let sequence = sequenceOf(block, 4u);
  let key = (block - sequence.firstBlock) * p.blockSize;
  let keys = min(p.blockSize, sequence.keys - key);
  let keyTiles = (keys + SIDE - 1u) / SIDE;
  let begin = ((sequence.key + key) * p.kvHeads + p.firstHead + head) * p.d;
  let step = p.kvHeads * p.d;
  let subgroup = thread / subgroupSize;
  let subgroups = THREADS / subgroupSize;

  if (thread < BQ) {
    entryOf[thread] = lists[p.entriesAt + tile * BQ + thread];
    beginOf[thread] = queryRow(max(entryOf[thread], 1u) - 1u, head) * p.d;
  }
  workgroupBarrier();
  for (var at = thread; at < BQ * DQ; at += THREADS) {
    var channels = vec4<f32>();
    if (entryOf[at / DQ] > 0u) { channels = q_row(beginOf[at / DQ], 4u * (at % DQ)); }
    let to = (at / DQ) * PITCH + 4u * (at % DQ);
    for (var e = 0u; e < 4u; e++) { queries[to + e] = f16(channels[e]); }
  }
  for (var at = thread; at < keyTiles * SIDE * DQ; at += THREADS) {
    var channels = vec4<f32>();
    if (at / DQ < keys) { channels = k_row(begin + (at / DQ) * step, 4u * (at % DQ)); }
    let to = (at / DQ) * PITCH + 4u * (at % DQ);
    for (var e = 0u; e < 4u; e++) { others[to + e] = f16(channels[e]); }
  }
  workgroupBarrier();

  // Both halves of the queries against two columns of keys at a time: four products for four loads.
  for (var n = 2u * subgroup; n < keyTiles; n += 2u * subgroups) {
    let column = n * SIDE;
    let next = min(n + 1u, keyTiles - 1u) * SIDE;
    var sum00 = subgroup_matrix_result<f32, SIDE, SIDE>();
    var sum01 = subgroup_matrix_result<f32, SIDE, SIDE>();
    var sum10 = subgroup_matrix_result<f32, SIDE, SIDE>();
    var sum11 = subgroup_matrix_result<f32, SIDE, SIDE>();
    for (var c = 0u; c < DQ * 4u; c += SIDE) {
      let a0 = subgroupMatrixLoad<subgroup_matrix_left<f16, SIDE, SIDE>, row_major>(&queries, c, PITCH);
      let a1 = subgroupMatrixLoad<subgroup_matrix_left<f16, SIDE, SIDE>, row_major>(&queries, SIDE * PITCH + c, PITCH);
      let b0 = subgroupMatrixLoad<subgroup_matrix_right<f16, SIDE, SIDE>, col_major>(&others, column * PITCH + c, PITCH);
      let b1 = subgroupMatrixLoad<subgroup_matrix_right<f16, SIDE, SIDE>, col_major>(&others, next * PITCH + c, PITCH);
      sum00 = subgroupMatrixMultiplyAccumulate(a0, b0, sum00);
      sum01 = subgroupMatrixMultiplyAccumulate(a0, b1, sum01);
      sum10 = subgroupMatrixMultiplyAccumulate(a1, b0, sum10);
      sum11 = subgroupMatrixMultiplyAccumulate(a1, b1, sum11);
    }
    subgroupMatrixStore<row_major>(&scores, column, sum00, SCORE_PITCH);
    subgroupMatrixStore<row_major>(&scores, next, sum01, SCORE_PITCH);
    subgroupMatrixStore<row_major>(&scores, SIDE * SCORE_PITCH + column, sum10, SCORE_PITCH);
    subgroupMatrixStore<row_major>(&scores, SIDE * SCORE_PITCH + next, sum11, SCORE_PITCH);
  }
  workgroupBarrier();

  for (var at = thread; at < keyTiles * SIDE * DQ; at += THREADS) {
    var channels = vec4<f32>();
    if (at / DQ < keys) { channels = v_row(begin + (at / DQ) * step, 4u * (at % DQ)); }
    let to = (at / DQ) * PITCH + 4u * (at % DQ);
    for (var e = 0u; e < 4u; e++) { others[to + e] = f16(channels[e]); }
  }
  // Neighbouring threads share a row.
  let row = thread / ROW_THREADS;
  let lane = thread % ROW_THREADS;
  let scale = p.scale * LOG2_E;
  var maximum = LOWEST;
  for (var j = lane; j < keys; j += ROW_THREADS) { maximum = max(maximum, scores[row * SCORE_PITCH + j] * scale); }
  for (var far = 1u; far < ROW_THREADS; far *= 2u) { maximum = max(maximum, subgroupShuffleXor(maximum, far)); }
  var total = 0.0;
  for (var j = lane; j < keyTiles * SIDE; j += ROW_THREADS) {
    var weight = 0.0;
    if (j < keys) { weight = exp2Of(scores[row * SCORE_PITCH + j] * scale - maximum); }
    total += weight;
    weights[row * WEIGHT_PITCH + j] = f16(weight);
  }
  for (var far = 1u; far < ROW_THREADS; far *= 2u) { total += subgroupShuffleXor(total, far); }
  if (lane == 0u) {
    // Keys that all score −Infinity have no weight beside the row's other blocks.
    factors[row] = select(1.0 / total, 0.0, bitcast<u32>(total) == 0u);
    let entry = entryOf[row];
    if (entry > 0u) { slots[slotOf(entry, head) + DQ] = vec4<f32>(maximum + log2Of(total), 1.0, 0.0, 0.0); }
  }
  workgroupBarrier();

  for (var n = subgroup; n < DQ * 4u / SIDE; n += subgroups) {
    let column = n * SIDE;
    var sum0 = subgroup_matrix_result<f32, SIDE, SIDE>();
    var sum1 = subgroup_matrix_result<f32, SIDE, SIDE>();
    for (var j = 0u; j < keyTiles * SIDE; j += SIDE) {
      let a0 = subgroupMatrixLoad<subgroup_matrix_left<f16, SIDE, SIDE>, row_major>(&weights, j, WEIGHT_PITCH);
      let a1 = subgroupMatrixLoad<subgroup_matrix_left<f16, SIDE, SIDE>, row_major>(&weights, SIDE * WEIGHT_PITCH + j, WEIGHT_PITCH);
      let b = subgroupMatrixLoad<subgroup_matrix_right<f16, SIDE, SIDE>, row_major>(&others, j * PITCH + column, PITCH);
      sum0 = subgroupMatrixMultiplyAccumulate(a0, b, sum0);
      sum1 = subgroupMatrixMultiplyAccumulate(a1, b, sum1);
    }
    subgroupMatrixStore<row_major>(&scores, column, sum0, SCORE_PITCH);
    subgroupMatrixStore<row_major>(&scores, SIDE * SCORE_PITCH + column, sum1, SCORE_PITCH);
  }
  workgroupBarrier();
  for (var at = thread; at < BQ * DQ; at += THREADS) {
    let r = at / DQ;
    let entry = entryOf[r];
    if (entry == 0u) { continue; }
    let from_ = r * SCORE_PITCH + 4u * (at % DQ);
    let sums = vec4<f32>(scores[from_], scores[from_ + 1u], scores[from_ + 2u], scores[from_ + 3u]);
    slots[slotOf(entry, head) + at % DQ] = sums * factors[r];
  }
}

// Where an entry's slot begins.
fn slotOf(entry: u32, head: u32) -> u32 {
  return (head * p.waveRows * p.slots + entry - 1u) * (DQ + 1u);
}
