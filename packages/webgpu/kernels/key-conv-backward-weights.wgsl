// dw_l = Σ_t g_t ⊙ k_{t−l}, in parts: each over some tokens.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let taps = p.width * p.channels;
  let i = p.firstPart * taps + group_index(group) * 64u + thread;
  if (i >= p.endPart * taps) { return; }
  let part = i / taps;
  let lag = i % taps / p.channels;
  let c = i % p.channels;
  let first = part * p.partTokens;
  let last = min(first + p.partTokens, p.tokens);
  if (first >= last) {
    parts[i] = 0.0;
    return;
  }
  var sequence = sequenceOf(first);
  var sum = 0.0;
  for (var t = first; t < last; t++) {
    while (t >= starts[sequence + 1u]) { sequence += 1u; }
    if (t - starts[sequence] >= lag) { sum += g[t * p.channels + c - p.g_from] * k_at((t - lag) * p.channels + c); }
  }
  parts[i] = sum;
}
