// attend.wgsl on matrix units: f16 queries, keys, values, probabilities and slots, float32 sums. A subgroup of 32 has as many entries of the
// list, two matrices high, so that each matrix of keys or values serves twice; of what passes between lanes and matrices, a lane has a row.
//
// The block's keys come in chunks. A chunk's scores become probabilities at once, relative to the row's maximum over the first chunk, so
// nothing is rescaled and no array of scores waits for the last chunk. Where a later score is so far above that maximum that f16 might
// overflow, all is done once more with the maximum of all chunks.
//
// Memory is in groups of eight f16 or four f32. Rows are an odd number of groups apart, so that eight neighbouring rows are in different banks.
// slots: for each row of the wave and each of its slots, the normalized result; slotLse: its base-2 log-sum-exp.

const PITCH = EIGHTS + 1u;
const SPARE = SCRATCH_PITCH - 1u; // the group of a row that no matrix has
const LOG2_E = 1.4426950408889634;
const MOST_ABOVE = 14.0; // of a score over what its row is relative to: 2^14 is far from f16's end

// The keys and values of a chunk, then a scratch of each subgroup: what passes between lanes and matrices.
const KEYS = 0u;
const VALUES = CHUNK * PITCH;
const OTHERS = 2u * CHUNK * PITCH;
var<workgroup> memory: array<vec4<u32>, OTHERS + SUBGROUP_COUNT * SCRATCH>;
var<workgroup> again: u32; // whether a row needs the second attempt
var<workgroup> nonFinite: atomic<u32>; // whether a value is not finite

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32,
  @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32,
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
  let width = p.d / 8u;
  let stride = p.kvHeads * width; // from token to token
  let begin = ((sequence.key + key) * p.kvHeads + p.firstHead + head) * width;

  let entry = lists[p.entriesAt + tile * BQ + subgroup * ROWS + lane];
  let limit = visibleKeys(entry, sequence, key, keys);
  let isBusy = lists[p.entriesAt + tile * BQ + subgroup * ROWS] > 0u; // whether the subgroup has entries
  var keyRows: array<vec4<u32>, FETCHED>;
  var valueRows: array<vec4<u32>, FETCHED>;
  @unroll for (var n = 0u; n < FETCHED; n++) {
    let source = fetchedFrom(0u, n * THREADS + thread, begin, stride, keys, width);
    keyRows[n] = k[source - p.k_from];
    valueRows[n] = v[source - p.v_from];
  }
  let queryAt = queryRow(max(entry, 1u) - 1u, head) * width - p.q_from;
  let scratch = OTHERS + subgroup * SCRATCH;
  if (thread == 0u) { atomicStore(&nonFinite, 0u); again = 0u; }
  var left0: array<Left, 2 * PAIRS>;
  var left1: array<Left, 2 * PAIRS>;
  var queries: array<vec4<u32>, 4 * PAIRS>;
  @unroll for (var pair = 0u; pair < PAIRS; pair++) {
    @unroll for (var i = 0u; i < 4u; i++) {
      let source = subgroupShuffle(queryAt, 8u * i + lane / 4u);
      let c = 4u * pair + lane % 4u;
      queries[4u * pair + i] = vec4<u32>();
      if (c < width) { queries[4u * pair + i] = q[source + c]; }
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

  let ours = scratch + lane * SCRATCH_PITCH;
  let scale = p.scale * LOG2_E;
  var maximum = LOWEST; // what probabilities are relative to
  var highest = LOWEST;
  var scored = 0.0;
  var sum = 0.0;
  var out0: array<Sum, 2 * PAIRS>;
  var out1: array<Sum, 2 * PAIRS>;
  for (var attempt = 0u; attempt < 2u; attempt++) {
    scored = 0.0;
    sum = 0.0;
    @unroll for (var c = 0u; c < 2 * PAIRS; c++) {
      out0[c] = Sum();
      out1[c] = Sum();
    }
    @unroll for (var n = 0u; n < FETCHED; n++) {
      let at = n * THREADS + thread;
      if (at < CHUNK * EIGHTS) {
        let isThere = at / EIGHTS < keys && at % EIGHTS < width;
        memory[KEYS + at / EIGHTS * PITCH + at % EIGHTS] = select(vec4<u32>(), keyRows[n], isThere);
      }
      keyRows[n] = k[fetchedFrom(CHUNK, at, begin, stride, keys, width) - p.k_from];
    }
    workgroupBarrier();
    for (var first = 0u; first < keys; first += CHUNK) {
      @unroll for (var n = 0u; n < FETCHED; n++) {
        let at = n * THREADS + thread;
        if (at < CHUNK * EIGHTS) {
          let isThere = first + at / EIGHTS < keys && at % EIGHTS < width;
          memory[VALUES + at / EIGHTS * PITCH + at % EIGHTS] = finiteOf(select(vec4<u32>(), valueRows[n], isThere));
        }
        valueRows[n] = v[fetchedFrom(first + CHUNK, at, begin, stride, keys, width) - p.v_from];
      }
      if (isBusy) {
        var score0 = Sum();
        var score1 = Sum();
        @unroll for (var c = 0u; c < STEPS; c++) {
          let keyMatrix = subgroupMatrixLoad<Right, col_major>(&memory, KEYS + 2u * c, PITCH);
          score0 = subgroupMatrixMultiplyAccumulate(left0[c], keyMatrix, score0);
          score1 = subgroupMatrixMultiplyAccumulate(left1[c], keyMatrix, score1);
        }
        subgroupMatrixStore<row_major>(&memory, scratch, score0, SCRATCH_PITCH);
        subgroupMatrixStore<row_major>(&memory, scratch + SIDE * SCRATCH_PITCH, score1, SCRATCH_PITCH);
      }
      workgroupBarrier();
      if (isBusy) {
        let left = max(limit, first) - first; // keys of the chunk that the row sees, or more
        var scores: array<vec4<f32>, 4>;
        @unroll for (var i = 0u; i < 4u; i++) { scores[i] = bitcast<vec4<f32>>(memory[ours + i]) * scale; }
        if (left < CHUNK) {
          @unroll for (var i = 0u; i < 4u; i++) { scores[i] = select(vec4<f32>(LOWEST), scores[i], isVisible(4u * i, left)); }
        }
        let most = max(max(scores[0], scores[1]), max(scores[2], scores[3]));
        let total = (scores[0] + scores[1]) + (scores[2] + scores[3]);
        highest = max(highest, max(max(most.x, most.y), max(most.z, most.w)));
        scored += (total.x + total.y) + (total.z + total.w);
        if (attempt + first == 0u) { maximum = highest; }
        @unroll for (var i = 0u; i < 4u; i++) { scores[i] = exp2(scores[i] - vec4<f32>(maximum)); }
        if (left < CHUNK) {
          @unroll for (var i = 0u; i < 4u; i++) { scores[i] = select(vec4<f32>(), scores[i], isVisible(4u * i, left)); }
        }
        let sums = (scores[0] + scores[1]) + (scores[2] + scores[3]);
        sum += (sums.x + sums.y) + (sums.z + sums.w);
        @unroll for (var i = 0u; i < 2u; i++) {
          memory[ours + i] = vec4<u32>(
            pack2x16float(scores[2u * i].xy), pack2x16float(scores[2u * i].zw),
            pack2x16float(scores[2u * i + 1u].xy), pack2x16float(scores[2u * i + 1u].zw),
          );
        }
      }
      @unroll for (var n = 0u; n < FETCHED; n++) {
        let at = n * THREADS + thread;
        if (at < CHUNK * EIGHTS) {
          let isThere = first + CHUNK + at / EIGHTS < keys && at % EIGHTS < width;
          memory[KEYS + at / EIGHTS * PITCH + at % EIGHTS] = select(vec4<u32>(), keyRows[n], isThere);
        }
        keyRows[n] = k[fetchedFrom(first + 2u * CHUNK, at, begin, stride, keys, width) - p.k_from];
      }
      workgroupBarrier();
      if (isBusy) {
        let weights0 = subgroupMatrixLoad<Left, row_major>(&memory, scratch, SCRATCH_PITCH);
        let weights1 = subgroupMatrixLoad<Left, row_major>(&memory, scratch + SIDE * SCRATCH_PITCH, SCRATCH_PITCH);
        @unroll for (var c = 0u; c < STEPS; c++) {
          let values = subgroupMatrixLoad<Right, row_major>(&memory, VALUES + 2u * c, PITCH);
          out0[c] = subgroupMatrixMultiplyAccumulate(weights0, values, out0[c]);
          out1[c] = subgroupMatrixMultiplyAccumulate(weights1, values, out1[c]);
        }
      }
      workgroupBarrier();
    }
    if (attempt == 0u && entry > 0u && highest > maximum + MOST_ABOVE) { again = 1u; }
    workgroupBarrier();
    if (workgroupUniformLoad(&again) == 0u) { break; }
    maximum = highest;
  }
  // A score that is NaN makes the row's result NaN: looked at once a row, not once a score. Beside it, only +Infinity and −Infinity
  // add up to NaN, and a row that scores +Infinity is NaN as well.
  sum += select(0.0, scored, isNan(scored));
  // Keys that all score −Infinity have no weight beside the row's other blocks.
  let factor = select(1.0 / sum, 0.0, bitcast<u32>(sum) == 0u);
  let slot = head * p.waveRows * p.slots + max(entry, 1u) - 1u;
  // What other lanes need of the row, since neighbouring lanes write neighbouring channels.
  memory[ours + SPARE] = vec4<u32>(bitcast<u32>(factor), slot, limit, entry);
  let isFinite = atomicLoad(&nonFinite) == 0u;
  @unroll for (var pair = 0u; pair < PAIRS; pair++) {
    @unroll for (var n = 0u; n < 2u; n++) {
      subgroupMatrixStore<row_major>(&memory, scratch, out0[2u * pair + n], SCRATCH_PITCH);
      subgroupMatrixStore<row_major>(&memory, scratch + SIDE * SCRATCH_PITCH, out1[2u * pair + n], SCRATCH_PITCH);
      workgroupBarrier();
      @unroll for (var j = 0u; j < 2u; j++) {
        let row = scratch + (16u * j + lane / 2u) * SCRATCH_PITCH;
        let info = memory[row + SPARE];
        let c = 4u * pair + 2u * n + lane % 2u;
        var low = bitcast<vec4<f32>>(memory[row + 2u * (lane % 2u)]) * bitcast<f32>(info.x);
        var high = bitcast<vec4<f32>>(memory[row + 2u * (lane % 2u) + 1u]) * bitcast<f32>(info.x);
        if (info.w > 0u && c < width) {
          if (isFinite && !isNan(bitcast<f32>(info.x))) {
            slots[info.y * width + c] = vec4<u32>(
              pack2x16float(low.xy), pack2x16float(low.zw), pack2x16float(high.xy), pack2x16float(high.zw),
            );
          } else {
            low += nonFiniteSum(2u * c, begin, info.z);
            high += nonFiniteSum(2u * c + 1u, begin, info.z);
            slots[info.y * width + c] = vec4<u32>(
              halvesOf(low.xy), halvesOf(low.zw), halvesOf(high.xy), halvesOf(high.zw),
            );
          }
        }
      }
      workgroupBarrier();
    }
  }
  if (entry > 0u) { slotLse[slot] = maximum + log2Of(sum); }
}

// Where a group of the chunk that begins with the block's key `first` is; after the last chunk, of the first one. Of keys that do not
// exist, one that does.
fn fetchedFrom(first: u32, at: u32, begin: u32, stride: u32, keys: u32, width: u32) -> u32 {
  let row = select(first, 0u, first >= keys) + at / EIGHTS;
  return begin + min(row, keys - 1u) * stride + min(at % EIGHTS, width - 1u);
}

// How many keys of the block an entry's query sees: of its own block those up to its position, if causal.
fn visibleKeys(entry: u32, sequence: Sequence, key: u32, keys: u32) -> u32 {
  if (!CAUSAL || entry == 0u) { return keys; }
  let token = p.firstToken + (entry - 1u) / p.slots / p.group;
  let position = i32(token - sequence.query) + i32(sequence.keys) - i32(sequence.queries);
  return u32(clamp(position + 1 - i32(key), 0, i32(keys)));
}

fn isVisible(first: u32, limit: u32) -> vec4<bool> { return vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(limit); }

// Eight values, zeros for those that are not finite: 0 · NaN would be NaN for the queries that do not see them.
fn finiteOf(eight: vec4<u32>) -> vec4<u32> {
  let isLow = (eight & vec4<u32>(0x7c00u)) == vec4<u32>(0x7c00u);
  let isHigh = (eight & vec4<u32>(0x7c000000u)) == vec4<u32>(0x7c000000u);
  if (any(isLow) || any(isHigh)) { atomicStore(&nonFinite, 1u); }
  return eight & (select(vec4<u32>(0xffffu), vec4<u32>(), isLow) | select(vec4<u32>(0xffff0000u), vec4<u32>(), isHigh));
}

// What is not finite among the values that a row sees, of four channels.
fn nonFiniteSum(c: u32, begin: u32, limit: u32) -> vec4<f32> {
  var sum = vec4<f32>();
  for (var j = 0u; j < limit; j++) {
    let eight = v[begin + j * p.kvHeads * (p.d / 8u) + c / 2u - p.v_from];
    let bits = select(eight.xy, eight.zw, (c & 1u) == 1u);
    sum += vec4<f32>(halfOf(bits.x), halfOf(bits.x >> 16u), halfOf(bits.y), halfOf(bits.y >> 16u));
  }
  return sum;
}

// An f16 that is not finite, as float32; 0 for every other.
fn halfOf(bits: u32) -> f32 {
  let wide = ((bits & 0x8000u) << 16u) | 0x7f800000u | ((bits & 0x3ffu) << 13u);
  return bitcast<f32>(select(0u, wide, (bits & 0x7c00u) == 0x7c00u));
}
