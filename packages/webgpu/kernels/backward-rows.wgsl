// What the backward pass needs of each query beside its row: (base-2 log-sum-exp, D = dOut · out).

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let row = p.firstRow + group_index(group) * 64u + thread;
  if (row >= p.endRow) { return; }
  var sum = 0.0;
  for (var c = 0u; c < p.d; c += 4u) { sum += dot(dOut_row(row * p.d, c), out_row(row * p.d, c)); }
  stats[row - p.stats_from] = vec2<f32>(lse[row - p.lse_from] * 1.4426950408889634, sum);
}
