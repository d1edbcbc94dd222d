// Whether a tile that passed by and was seen in part had an element that is not finite. Only then does a weight of 0 for a row that is
// not to be seen not do: 0 · NaN is NaN. Who streams tiles sets it to 0 first.
var<workgroup> nonFinite: atomic<u32>;

fn noteNonFinite(x: vec4<f32>) {
  let exponent = vec4<u32>(0x7f800000u);
  if (any((bitcast<vec4<u32>>(x) & exponent) == exponent)) { atomicStore(&nonFinite, 1u); }
}
