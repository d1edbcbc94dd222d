// dx_t = (g_t − n_t mean(g_t ⊙ n_t)) / r_t with n_t = x_t / r_t, g_t = w ⊙ dOut_t; and 1 / r_t for the weights' gradient.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let row = group_index(group);
  if (row >= p.groups) { return; }
  var squares = 0.0;
  var products = 0.0;
  for (var c = 4u * thread; c < p.d; c += 4u * ROW_THREADS) {
    let x = x_row(row * p.d, c);
    squares += dot(x, x);
    products += dot(weight_row(0u, c) * dOut_row(row * p.d, c), x);
  }
  let inverse = 1.0 / sqrt(rowTotal(thread, squares) / f32(p.d) + p.epsilon);
  let mean = rowTotal(thread, products) * inverse / f32(p.d);
  for (var c = 4u * thread; c < p.d; c += 4u * ROW_THREADS) {
    let g = weight_row(0u, c) * dOut_row(row * p.d, c);
    dx_put(row * p.d, c, (g - x_row(row * p.d, c) * (inverse * mean)) * inverse);
  }
  if (thread == 0u) { inverses[row] = inverse; }
}
