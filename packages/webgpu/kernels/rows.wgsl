// Sums and maxima over a workgroup of 64 threads that share a row.

const ROW_THREADS = 64u;

var<workgroup> shared_values: array<f32, ROW_THREADS>;

fn rowTotal(thread: u32, value: f32) -> f32 {
  workgroupBarrier();
  shared_values[thread] = value;
  for (var width = ROW_THREADS / 2u; width > 0u; width /= 2u) {
    workgroupBarrier();
    if (thread < width) { shared_values[thread] += shared_values[thread + width]; }
  }
  workgroupBarrier();
  return shared_values[0];
}

fn rowMaximum(thread: u32, value: f32) -> f32 {
  workgroupBarrier();
  shared_values[thread] = value;
  for (var width = ROW_THREADS / 2u; width > 0u; width /= 2u) {
    workgroupBarrier();
    if (thread < width) { shared_values[thread] = max(shared_values[thread], shared_values[thread + width]); }
  }
  workgroupBarrier();
  return shared_values[0];
}
