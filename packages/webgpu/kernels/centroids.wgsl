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
  for (var j = 0u; j < count; j++) { sum += k_at((sequence.key + key + j) * p.channels + channel); }
  out[i - p.out_from] = sum / f32(count);
}
