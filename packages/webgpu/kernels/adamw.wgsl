// One step of AdamW, unless the gradient is not finite. `schedule`: the number of the step and the learning rate.

// 1 − βᵗ = −(e^x − 1), x = t ln β: as a series where the difference would lose digits.
fn correction(logBeta: f32) -> f32 {
  let x = max(schedule[0] * logBeta, -80.0);
  if (x < -0.3) { return 1.0 - exp(x); }
  return -x * (1.0 + x * (0.5 + x * (0.16666667 + x * (0.041666667 + x * (0.0083333333 + x * 0.0013888889)))));
}

fn compute(i: u32) {
  let norm = gradientNorm[0];
  if (!isFinite(norm)) { return; }
  var scale = 1.0;
  if (norm > p.clipNorm) { scale = p.clipNorm / norm; }
  let g = scale * gradient_quad(i);
  let mean = p.beta1 * m_quad(i) + p.oneMinusBeta1 * g;
  let square = p.beta2 * v_quad(i) + p.oneMinusBeta2 * g * g;
  let x = parameter_quad(i);
  let direction = mean / correction(p.logBeta1) / (sqrt(square / correction(p.logBeta2)) + p.epsilon);
  m_set(i, mean);
  v_set(i, square);
  parameter_set(i, x - schedule[1] * (direction + p.weightDecay * x));
}
