// Each sequence's last W − 1 keys, oldest first; those from before the sequence are the history's, or zero.
fn bitsAt(i: u32) -> u32 {
  let slots = p.width - 1u;
  let c = i % p.channels;
  let slot = i / p.channels % slots;
  let sequence = i / p.channels / slots;
  if (sequence < p.firstSequence || sequence >= p.endSequence) { return 0u; }
  let length = starts[sequence + 1u] - starts[sequence];
  let lag = slots - slot; // tokens before the sequence's next one
  if (lag <= length) {
    let at = (starts[sequence + 1u] - lag) * p.channels + c;
    if (PACKED) { return (k[(at >> 1u) - p.k_from] >> (16u * (at & 1u))) & 0xffffu; }
    return k[at - p.k_from];
  }
  if (!HISTORY) { return 0u; }
  let at = (sequence * slots + slots + length - lag) * p.channels + c;
  if (PACKED) { return (history[(at >> 1u) - p.history_from] >> (16u * (at & 1u))) & 0xffffu; }
  return history[at - p.history_from];
}
