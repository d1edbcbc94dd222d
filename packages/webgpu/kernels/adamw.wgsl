// One step of AdamW; the corrections 1 − βᵗ come as their inverses.
fn compute(i: u32) {
  let g = p.gradientScale * gradient_quad(i);
  let mean = p.beta1 * m_quad(i) + p.oneMinusBeta1 * g;
  let square = p.beta2 * v_quad(i) + p.oneMinusBeta2 * g * g;
  let x = parameter_quad(i);
  let direction = mean * p.inverseCorrection1 / (sqrt(square * p.inverseCorrection2) + p.epsilon);
  m_set(i, mean);
  v_set(i, square);
  parameter_set(i, x - p.learningRate * (direction + p.weightDecay * x));
}
