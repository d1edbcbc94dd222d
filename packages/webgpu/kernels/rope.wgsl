// Rotary embedding: channels c and c + D/2 of each head turn by position · frequency. Angles are kept in turns, as a 32-bit fraction:
// the product with the position wraps by itself, so far positions lose nothing; what the fraction leaves of a frequency is added in
// float32. frequencies: for each pair (fraction · 2³², rest as the bits of a float32, in turns).

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = group_index(group) * 64u + thread;
  if (i >= p.pairs) { return; }
  let pair = i % (p.d / 2u);
  let row = i / (p.d / 2u);
  let position = positions[row / p.heads];
  let turns = bitcast<i32>(bitcast<u32>(position) * frequencies[2u * pair]);
  let rest = f32(position) * bitcast<f32>(frequencies[2u * pair + 1u]);
  // The nearest quarter turn, and what is left of it, in radians.
  let quarter = (turns + (1 << 29)) >> 30u;
  let angle = (f32(turns - (quarter << 30u)) * 2.3283064365386963e-10 + rest) * 6.283185307179586;
  let square = angle * angle;
  let sine = angle * (1.0 + square * (-0.16666666666 + square * (0.00833333315 + square * (-0.000198412 + square * 2.7525e-6))));
  let cosine = 1.0 + square * (-0.5 + square * (0.0416666666 + square * (-0.0013888885 + square * 2.4801e-5)));
  var turned = vec2<f32>(cosine, sine);
  switch quarter & 3 {
    case 1: { turned = vec2<f32>(-sine, cosine); }
    case 2: { turned = vec2<f32>(-cosine, -sine); }
    case 3: { turned = vec2<f32>(sine, -cosine); }
    default: {}
  }
  if ((p.inverse != 0u)) { turned.y = -turned.y; }
  let low = row * p.d + pair;
  let high = low + p.d / 2u;
  let a = x_at(low);
  let b = x_at(high);
  out[low] = a * turned.x - b * turned.y;
  out[high] = a * turned.y + b * turned.x;
}
