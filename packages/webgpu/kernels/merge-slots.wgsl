// The result of each row of a wave from its slots: normalized output, natural log-sum-exp. EIGHTS threads have a row, eight channels each.
// slots, slotLse: as in attend-matrix.wgsl; unused ones as in mark-lse.wgsl.

const THREADS = 128u;
const ROWS = THREADS / EIGHTS;
const MOST = 8u; // slots that are fetched side by side
const MINUS_INFINITY = 0xff800000u;
const LOWEST = -3.0e38;
const LN_2 = 0.6931471805599453;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group) * ROWS + thread / EIGHTS;
  let c = thread % EIGHTS;
  let width = p.d / 8u;
  if (thread >= ROWS * EIGHTS || index >= p.rows || c >= width) { return; }
  let row = index % p.waveRows;
  var maximum = LOWEST;
  var sum = 0.0;
  var low = vec4<f32>();
  var high = vec4<f32>();
  var seen = false;
  for (var first = 0u; first < SLOTS; first += MOST) {
    var lses: array<f32, MOST>;
    var parts: array<vec4<u32>, MOST>;
    @unroll for (var n = 0u; n < 8u; n++) {
      let slot = index * SLOTS + min(first + n, SLOTS - 1u);
      lses[n] = slotLse[slot];
      parts[n] = slots[slot * width + c];
    }
    var isUsed: array<bool, MOST>;
    var next = maximum;
    @unroll for (var n = 0u; n < 8u; n++) {
      isUsed[n] = first + n < SLOTS && bitcast<u32>(lses[n]) != UNUSED;
      if (isUsed[n]) { next = max(next, lses[n]); }
    }
    let factor = exp2Of(maximum - next);
    maximum = next;
    sum *= factor;
    low *= factor;
    high *= factor;
    @unroll for (var n = 0u; n < 8u; n++) {
      if (isUsed[n]) {
        let weight = exp2Of(lses[n] - next);
        sum += weight;
        low += vec4<f32>(unpack2x16float(parts[n].x), unpack2x16float(parts[n].y)) * weight;
        high += vec4<f32>(unpack2x16float(parts[n].z), unpack2x16float(parts[n].w)) * weight;
        seen = true;
      }
    }
  }
  let to = (p.firstToken + row / p.group) * p.kvHeads * p.group + (p.firstHead + index / p.waveRows) * p.group + row % p.group;
  out_set(to * (p.d / 4u) + 2u * c, select(vec4<f32>(), low * (1.0 / sum), seen));
  out_set(to * (p.d / 4u) + 2u * c + 1u, select(vec4<f32>(), high * (1.0 / sum), seen));
  if (c == 0u) { lse[to - p.lse_from] = select(MINUS_INFINITY, bitcast<u32>((maximum + log2Of(sum)) * LN_2), seen); }
}
