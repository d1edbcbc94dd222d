// dLogits_tv = dLoss_t (exp(logits_tv − lse_t) − [v = y_t]), zero where the wanted is no column.
fn compute(i: u32) {
  var gradients: vec4<f32>;
  for (var e = 0u; e < 4u; e++) {
    let at = 4u * i + e;
    let row = at / p.columns;
    let wanted = u32(targets[row]);
    if (at >= p.size || wanted >= p.columns) { continue; }
    let probability = exp2Of((logits_at(at) - lse[row]) * 1.4426950408889634);
    gradients[e] = dLoss[row] * (probability - f32(u32(at % p.columns == wanted)));
  }
  dLogits_set(i, gradients);
}
