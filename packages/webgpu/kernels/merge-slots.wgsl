// The result of each row of a wave from its slots: normalized output, natural log-sum-exp. DQ threads have a row, four channels each.

const THREADS = 128u;
const ROWS = THREADS / DQ;
const MOST = 8u; // slots that are fetched side by side
const MINUS_INFINITY = 0xff800000u;
const LOWEST = -3.0e38;
const LN_2 = 0.6931471805599453;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group) * ROWS + thread / DQ;
  let c = thread % DQ;
  if (thread >= ROWS * DQ || index >= p.rows || 4u * c >= p.d) { return; }
  let row = index % p.waveRows;
  var maximum = LOWEST;
  var sum = 0.0;
  var out4 = vec4<f32>();
  var seen = false;
  for (var first = 0u; first < p.slots; first += MOST) {
    var tails: array<vec2<f32>, MOST>;
    var parts: array<vec4<f32>, MOST>;
    @unroll for (var n = 0u; n < 8u; n++) {
      let at = (index * p.slots + min(first + n, p.slots - 1u)) * (DQ + 1u);
      tails[n] = slots[at + DQ].xy;
      parts[n] = slots[at + c];
    }
    var next = maximum;
    @unroll for (var n = 0u; n < 8u; n++) {
      if (first + n >= p.slots) { tails[n].y = 0.0; }
      if (tails[n].y != 0.0) { next = max(next, tails[n].x); }
    }
    let factor = exp2Of(maximum - next);
    maximum = next;
    sum *= factor;
    out4 *= factor;
    @unroll for (var n = 0u; n < 8u; n++) {
      if (tails[n].y != 0.0) {
        let weight = exp2Of(tails[n].x - next);
        sum += weight;
        out4 += parts[n] * weight;
        seen = true;
      }
    }
  }
  let to = (p.firstToken + row / p.group) * p.kvHeads * p.group + (p.firstHead + index / p.waveRows) * p.group + row % p.group;
  out_set(to * (p.d / 4u) + c, select(vec4<f32>(), out4 * (1.0 / sum), seen));
  if (c == 0u) { lse[to - p.lse_from] = select(MINUS_INFINITY, bitcast<u32>((maximum + log2Of(sum)) * LN_2), seen); }
}
