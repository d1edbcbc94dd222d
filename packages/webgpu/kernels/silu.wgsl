// SiLU(z) = z σ(z), with exp of what is not positive only.
fn sigmoid(z: vec4<f32>) -> vec4<f32> {
  let e = exp(-abs(z));
  return select(vec4<f32>(1.0), e, z < vec4<f32>(0.0)) / (1.0 + e);
}
