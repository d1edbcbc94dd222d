// Partial sums of elements, or of their squares: one a workgroup.

var<workgroup> sums: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  var sum = 0.0;
  for (var i = p.firstQuad + index * 256u + thread; i < p.endQuad; i += p.groups * 256u) {
    var x = x_quad(i);
    let left = p.size - 4u * i;
    if (left < 4u) { x = select(vec4<f32>(), x, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left)); }
    if (SQUARES) { x *= x; }
    sum += (x.x + x.y) + (x.z + x.w);
  }
  sums[thread] = sum;
  for (var width = 128u; width > 0u; width /= 2u) {
    workgroupBarrier();
    if (thread < width) { sums[thread] += sums[thread + width]; }
  }
  if (thread == 0u) { out[p.place + index] = sums[0]; }
}
