// The mean of each block's keys: one thread for a channel of a block.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = p.first + group_index(group) * 64u + thread;
  if (i >= p.end) { return; }
  let block = i / p.channels;
  let channel = i % p.channels;
  let sequence = sequenceOf(block, 4u);
  let key = (block - sequence.firstBlock) * p.blockSize;
  let count = min(p.blockSize, sequence.keys - key);
  var sum = 0.0;
  // Eight at a time, so that they are waited for together.
  for (var first = 0u; first < count; first += 8u) {
    var elements: array<f32, 8>;
    @unroll for (var n = 0u; n < 8u; n++) {
      elements[n] = k_at((sequence.key + key + min(first + n, count - 1u)) * p.channels + channel);
    }
    @unroll for (var n = 0u; n < 8u; n++) { sum += select(0.0, elements[n], first + n < count); }
  }
  out[i - p.out_from] = sum / f32(count);
}
