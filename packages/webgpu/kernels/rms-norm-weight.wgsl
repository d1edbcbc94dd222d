// dWeight_c = Σ_t dOut_tc x_tc / r_t, in parts: each over some rows.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = p.firstPart * p.d + group_index(group) * 64u + thread;
  if (i >= p.endPart * p.d) { return; }
  let part = i / p.d;
  let c = i % p.d;
  var sum = 0.0;
  for (var row = part * p.partRows; row < min((part + 1u) * p.partRows, p.rows); row++) {
    sum += dOut_at(row * p.d + c) * (x_at(row * p.d + c) * inverses[row - p.inverses_from]);
  }
  parts[i] = sum;
}
