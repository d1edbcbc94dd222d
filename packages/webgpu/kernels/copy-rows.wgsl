// Elements p.first … p.last − 1 of the target become those of the source from p.source on, by their bits. A word of a packed dtype that
// only begins or ends inside keeps its other half.

fn sourceBits(i: u32) -> u32 { return (x[(i >> 1u) - p.x_from] >> (16u * (i & 1u))) & 0xffffu; }

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = group_index(group) * 64u + thread;
  if (!PACKED) {
    if (i < p.last - p.first) { out[p.first + i - p.out_from] = x[p.source + i - p.x_from]; }
    return;
  }
  let word = p.first / 2u + i;
  if (2u * word >= p.last) { return; }
  var bits = out[word - p.out_from];
  if (2u * word >= p.first) { bits = (bits & 0xffff0000u) | sourceBits(p.source + 2u * word - p.first); }
  if (2u * word + 1u < p.last) {
    bits = (bits & 0xffffu) | (sourceBits(p.source + 2u * word + 1u - p.first) << 16u);
  }
  out[word - p.out_from] = bits;
}
