// g_t = dOut_t ⊙ SiLU'(s_t).
fn compute(i: u32) {
  var sums: vec4<f32>;
  for (var e = 0u; e < min(4u, p.size - 4u * i); e++) { sums[e] = weightedSum(4u * i + e); }
  let s = sigmoid(sums);
  g_set(i, dOut_quad(i) * s * (1.0 + sums * (1.0 - s)));
}
