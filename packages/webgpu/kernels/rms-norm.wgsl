// out_t = w ⊙ x_t / r_t, r_t = sqrt(mean x² + ε): one workgroup a row.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let row = group_index(group);
  if (row >= p.groups) { return; }
  var squares = 0.0;
  for (var c = 4u * thread; c < p.d; c += 4u * ROW_THREADS) {
    let x = x_row(row * p.d, c);
    squares += dot(x, x);
  }
  let inverse = 1.0 / sqrt(rowTotal(thread, squares) / f32(p.d) + p.epsilon);
  for (var c = 4u * thread; c < p.d; c += 4u * ROW_THREADS) {
    out_put(row * p.d, c, weight_row(0u, c) * x_row(row * p.d, c) * inverse);
  }
}
