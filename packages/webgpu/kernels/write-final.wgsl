// The result of a row: normalized output and natural log-sum-exp; zeros and −Infinity for a row that saw no key.
fn writeFinal(
  tx: u32, row: u32, seen: bool, i: u32,
  maximum: f32, sum: f32, out: ptr<function, array<vec4<f32>, RQ * CQ>>,
) {
  let factor = select(0.0, 1.0 / sum, seen);
  @unroll for (var n = 0u; n < CQ; n++) {
    let c = tx + NX * n;
    if (c < DQ) { out_put(row * p.d, 4u * c, select(vec4<f32>(), (*out)[i * CQ + n] * factor, seen)); }
  }
  if (tx == 0u) {
    let total = (maximum + log2Of(sum)) * LN_2;
    lse[row - p.lse_from] = select(MINUS_INFINITY, bitcast<u32>(total), seen);
  }
}
