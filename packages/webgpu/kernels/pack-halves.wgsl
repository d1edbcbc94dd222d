// Two numbers as f16. WGSL leaves open what pack2x16float makes of those that are not finite.
fn halvesOf(x: vec2<f32>) -> u32 {
  let bits = bitcast<vec2<u32>>(x);
  let special = ((bits >> vec2<u32>(16u)) & vec2<u32>(0x8000u)) |
    select(vec2<u32>(0x7c00u), vec2<u32>(0x7e00u), vec2<bool>(isNan(x.x), isNan(x.y)));
  let isSpecial = (bits & vec2<u32>(0x7f800000u)) == vec2<u32>(0x7f800000u);
  let packed = pack2x16float(select(x, vec2<f32>(), isSpecial));
  let halves = select(vec2<u32>(packed & 0xffffu, packed >> 16u), special, isSpecial);
  return halves.x | (halves.y << 16u);
}
