// attend.wgsl on matrix units: f16 queries, keys, values and probabilities, float32 sums. A subgroup of 32 has SIDE entries of the list; the
// block's keys, at most CHUNKS · CHUNK, are all scored before the first probability is rounded, so nothing is ever rescaled. The
// scores wait in registers: lane l has row l % SIDE, of each chunk of keys those of tile l / SIDE.
//
// Memory is in groups of eight f16 or four f32. Rows are an odd number of groups apart, so that eight neighbouring rows are in different banks.

const SIDE = 16u; // rows and columns of a matrix
const CHUNK = 2u * SIDE; // keys scored, channels written at a time
const BQ = SIDE * SUBGROUP_COUNT;
const THREADS = 32u * SUBGROUP_COUNT;
const EIGHTS = 2u * STEPS; // groups of eight channels of a row
const PITCH = EIGHTS + 1u;
const KEY_ROWS = CHUNK * CHUNKS;
const SCRATCH_PITCH = max(PITCH, 9u);
const SCRATCH = SIDE * SCRATCH_PITCH;
const LOWEST = -3.0e38;
const LOG2_E = 1.4426950408889634;

alias Left = subgroup_matrix_left<f16, SIDE, SIDE>;
alias Right = subgroup_matrix_right<f16, SIDE, SIDE>;
alias Sum = subgroup_matrix_result<f32, SIDE, SIDE>;

// The keys, then the values; from OTHERS on, a scratch of each subgroup: its queries, then what passes between lanes and matrices.
const OTHERS = KEY_ROWS * PITCH;
var<workgroup> memory: array<vec4<u32>, OTHERS + SUBGROUP_COUNT * SCRATCH>;
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
  let begin = ((sequence.key + key) * p.kvHeads + p.firstHead + head) * width;
  let entries = p.entriesAt + tile * BQ;

  var rows: array<vec4<u32>, FETCHED>;
  @unroll for (var n = 0u; n < FETCHED; n++) { rows[n] = k[fetchedFrom(n, thread, begin, keys) - p.k_from]; }
  var queries: array<vec4<u32>, STEPS>;
  @unroll for (var n = 0u; n < STEPS; n++) {
    let at = n * THREADS + thread;
    let entry = lists[entries + at / EIGHTS];
    let c = at % EIGHTS;
    let query = q[queryRow(max(entry, 1u) - 1u, head) * width + min(c, width - 1u) - p.q_from];
    queries[n] = select(vec4<u32>(), query, entry > 0u && c < width);
  }
  if (thread == 0u) { atomicStore(&nonFinite, 0u); }
  @unroll for (var n = 0u; n < FETCHED; n++) {
    let at = n * THREADS + thread;
    if (at < KEY_ROWS * EIGHTS) {
      memory[at / EIGHTS * PITCH + at % EIGHTS] = select(vec4<u32>(), rows[n], isFetched(at, keys, width));
    }
  }
  @unroll for (var n = 0u; n < STEPS; n++) {
    let at = n * THREADS + thread;
    memory[OTHERS + at / EIGHTS / SIDE * SCRATCH + at / EIGHTS % SIDE * SCRATCH_PITCH + at % EIGHTS] = queries[n];
  }
  workgroupBarrier();
  @unroll for (var n = 0u; n < FETCHED; n++) { rows[n] = v[fetchedFrom(n, thread, begin, keys) - p.v_from]; }

  let scratch = OTHERS + subgroup * SCRATCH;
  let row = lane % SIDE;
  let half = lane / SIDE;
  let ours = scratch + row * SCRATCH_PITCH + 4u * half; // the lane's part of what a matrix leaves
  let entry = lists[entries + subgroup * SIDE + row];
  let limit = visibleKeys(entry, sequence, key, keys);

  var left: array<Left, STEPS>;
  @unroll for (var c = 0u; c < STEPS; c++) { left[c] = subgroupMatrixLoad<Left, row_major>(&memory, scratch + 2u * c, SCRATCH_PITCH); }
  workgroupBarrier();
  var scores: array<vec4<f32>, CHUNKS * 4>;
  let scale = p.scale * LOG2_E;
  var most = vec4<f32>(LOWEST);
  var total = vec4<f32>();
  @unroll for (var chunk = 0u; chunk < CHUNKS; chunk++) {
    var low = Sum();
    var high = Sum();
    @unroll for (var c = 0u; c < STEPS; c++) {
      let at = chunk * CHUNK * PITCH + 2u * c;
      low = subgroupMatrixMultiplyAccumulate(left[c], subgroupMatrixLoad<Right, col_major>(&memory, at, PITCH), low);
      high = subgroupMatrixMultiplyAccumulate(left[c], subgroupMatrixLoad<Right, col_major>(&memory, at + SIDE * PITCH, PITCH), high);
    }
    subgroupMatrixStore<row_major>(&memory, scratch, low, SCRATCH_PITCH);
    subgroupMatrixStore<row_major>(&memory, scratch + 4u, high, SCRATCH_PITCH);
    workgroupBarrier();
    @unroll for (var i = 0u; i < 4u; i++) {
      let score = bitcast<vec4<f32>>(memory[ours + i]) * scale;
      let masked = select(vec4<f32>(LOWEST), score, isVisible(chunk * CHUNK + half * SIDE + 4u * i, limit));
      scores[4u * chunk + i] = masked;
      most = max(most, masked);
      total += masked;
    }
    workgroupBarrier();
  }
  var maximum = max(max(most.x, most.y), max(most.z, most.w));
  maximum = max(maximum, subgroupShuffleXor(maximum, SIDE));
  var sums = vec4<f32>();
  @unroll for (var chunk = 0u; chunk < CHUNKS; chunk++) {
    @unroll for (var i = 0u; i < 4u; i++) {
      let weight = exp2(scores[4u * chunk + i] - vec4<f32>(maximum));
      scores[4u * chunk + i] = select(vec4<f32>(), weight, isVisible(chunk * CHUNK + half * SIDE + 4u * i, limit));
      sums += scores[4u * chunk + i];
    }
  }
  // A score that is NaN makes the row's result NaN: looked at once a row, not once a score. Beside it, only +Infinity and −Infinity
  // add up to NaN, and a row that scores +Infinity is NaN as well.
  let scored = (total.x + total.y) + (total.z + total.w);
  var sum = (sums.x + sums.y) + (sums.z + sums.w) + select(0.0, scored, isNan(scored));
  sum += subgroupShuffleXor(sum, SIDE);

  @unroll for (var n = 0u; n < FETCHED; n++) {
    let at = n * THREADS + thread;
    if (at < KEY_ROWS * EIGHTS) {
      memory[at / EIGHTS * PITCH + at % EIGHTS] = finiteOf(select(vec4<u32>(), rows[n], isFetched(at, keys, width)));
    }
  }
  var out: array<Sum, 2 * OUT_CHUNKS>;
  // Places are kept inside by remainders: WGSL refuses a constant one that is not, even where nothing gets there.
  @unroll for (var pair = 0u; pair < PAIRS; pair++) {
    @unroll for (var n = 0u; n < 2u; n++) {
      if (2u * pair + n < CHUNKS) {
        @unroll for (var i = 0u; i < 2u; i++) {
          let at = (4u * (2u * pair + n) + 2u * i) % (4u * CHUNKS);
          memory[scratch + row * SCRATCH_PITCH + 4u * n + 2u * half + i] = vec4<u32>(
            pack2x16float(scores[at].xy), pack2x16float(scores[at].zw),
            pack2x16float(scores[at + 1u].xy), pack2x16float(scores[at + 1u].zw),
          );
        }
      }
    }
    workgroupBarrier();
    @unroll for (var n = 0u; n < 4u; n++) {
      if (4u * pair + n < 2u * CHUNKS) {
        let weights = subgroupMatrixLoad<Left, row_major>(&memory, scratch + 2u * n, SCRATCH_PITCH);
        @unroll for (var c = 0u; c < STEPS; c++) {
          let values = subgroupMatrixLoad<Right, row_major>(&memory, (4u * pair + n) % (2u * CHUNKS) * SIDE * PITCH + 2u * c, PITCH);
          out[c] = subgroupMatrixMultiplyAccumulate(weights, values, out[c]);
        }
      }
    }
    workgroupBarrier();
  }

  // Keys that all score −Infinity have no weight beside the row's other blocks.
  let factor = select(1.0 / sum, 0.0, bitcast<u32>(sum) == 0u);
  let slot = (head * p.waveRows * p.slots + max(entry, 1u) - 1u) * (DQ + 1u);
  let isFinite = atomicLoad(&nonFinite) == 0u;
  @unroll for (var chunk = 0u; chunk < OUT_CHUNKS; chunk++) {
    subgroupMatrixStore<row_major>(&memory, scratch, out[2u * chunk], SCRATCH_PITCH);
    subgroupMatrixStore<row_major>(&memory, scratch + 4u, out[2u * chunk + 1u], SCRATCH_PITCH);
    workgroupBarrier();
    if (entry > 0u) {
      @unroll for (var i = 0u; i < 4u; i++) {
        let c = 8u * chunk + 4u * half + i;
        if (4u * c < p.d) {
          var four = bitcast<vec4<f32>>(memory[ours + i]) * factor;
          if (!isFinite) { four += nonFiniteSum(c, begin, limit); }
          slots[slot + c] = four;
        }
      }
    }
    workgroupBarrier();
  }
  if (entry > 0u && half == 0u) { slots[slot + DQ] = vec4<f32>(maximum + log2Of(sum), 1.0, 0.0, 0.0); }
}

// Where group n of a thread is, of the rows of a block: its first, where there is none.
fn fetchedFrom(n: u32, thread: u32, begin: u32, keys: u32) -> u32 {
  let at = n * THREADS + thread;
  let width = p.d / 8u;
  return begin + min(at / EIGHTS, keys - 1u) * p.kvHeads * width + min(at % EIGHTS, width - 1u);
}

fn isFetched(at: u32, keys: u32, width: u32) -> bool { return at / EIGHTS < keys && at % EIGHTS < width; }

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
    let four = vec4<f32>(halfOf(bits.x), halfOf(bits.x >> 16u), halfOf(bits.y), halfOf(bits.y >> 16u));
    sum += four;
  }
  return sum;
}

// An f16 that is not finite, as float32; 0 for every other.
fn halfOf(bits: u32) -> f32 {
  let wide = ((bits & 0x8000u) << 16u) | 0x7f800000u | ((bits & 0x3ffu) << 13u);
  return bitcast<f32>(select(0u, wide, (bits & 0x7c00u) == 0x7c00u));
}
