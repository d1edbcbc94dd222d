// dk_t = dOut_t + Σ_l w_l ⊙ g_{t+l}, inside each sequence.
fn compute(i: u32) {
  var gradients = dOut_quad(i);
  for (var e = 0u; e < min(4u, p.size - 4u * i); e++) {
    let at = 4u * i + e;
    let t = at / p.channels;
    let left = starts[sequenceOf(t) + 1u] - t;
    for (var lag = 0u; lag < min(p.width, left); lag++) {
      gradients[e] += weights_at(lag * p.channels + at % p.channels) * g[at + lag * p.channels - p.g_from];
    }
  }
  dk_set(i, gradients);
}
