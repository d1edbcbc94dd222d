// k'_t = k_t + SiLU(s_t).
fn compute(i: u32) {
  var sums: vec4<f32>;
  var keys: vec4<f32>;
  for (var e = 0u; e < min(4u, p.size - 4u * i); e++) {
    sums[e] = weightedSum(4u * i + e);
    keys[e] = k_at(4u * i + e);
  }
  out_set(i, keys + sums * sigmoid(sums));
}
