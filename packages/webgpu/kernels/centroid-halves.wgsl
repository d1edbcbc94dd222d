// Each element of the centroids as two f16: its upper part, and 2^11 times what that leaves. halves: [blocks, kvHeads, 2, d]. A thread has
// eight channels.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let at = group_index(group) * 64u + thread;
  if (at >= p.count) { return; }
  let width = p.d / 8u;
  var upper = vec4<u32>();
  var lower = vec4<u32>();
  @unroll for (var n = 0u; n < 2u; n++) {
    let x = centroids[2u * at + n];
    let xy = halvesOf(x.xy);
    let zw = halvesOf(x.zw);
    upper[2u * n] = xy;
    upper[2u * n + 1u] = zw;
    lower[2u * n] = pack2x16float(restOf(x.xy - unpack2x16float(xy)));
    lower[2u * n + 1u] = pack2x16float(restOf(x.zw - unpack2x16float(zw)));
  }
  let to = at / width * 2u * width + at % width;
  halves[to] = upper;
  halves[to + width] = lower;
}

// What is not finite leaves nothing.
fn restOf(x: vec2<f32>) -> vec2<f32> {
  let isSpecial = (bitcast<vec2<u32>>(x) & vec2<u32>(0x7f800000u)) == vec2<u32>(0x7f800000u);
  return select(x * 2048.0, vec2<f32>(), isSpecial);
}
