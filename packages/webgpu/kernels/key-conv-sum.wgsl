// s_t = Σ_l w_l ⊙ k_{t−l} at element i of [T, channels]; before the sequence lies its history, or nothing.
fn weightedSum(i: u32) -> f32 {
  let t = i / p.channels;
  let c = i % p.channels;
  let sequence = sequenceOf(t);
  let place = t - starts[sequence];
  var sum = 0.0;
  for (var lag = 0u; lag < p.width; lag++) {
    var key = 0.0;
    if (lag <= place) {
      key = k_at(i - lag * p.channels);
    } else if (HISTORY) {
      key = history_at((sequence * (p.width - 1u) + p.width - 1u + place - lag) * p.channels + c);
    } else {
      break;
    }
    sum += weights_at(lag * p.channels + c) * key;
  }
  return sum;
}
