// There are no other parts of rows.
fn addParts(
  tx: u32, ty: u32, sequence: Sequence, kvHead: u32, item: Item, seen: ptr<function, array<bool, RQ>>,
  maximum: ptr<function, array<f32, RQ>>, sum: ptr<function, array<f32, RQ>>,
  out: ptr<function, array<vec4<f32>, RQ * CQ>>,
) {}
