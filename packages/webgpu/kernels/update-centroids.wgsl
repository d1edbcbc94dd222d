// Running block means: blocks (first new key token, its place in its block, new keys, centroid), one thread a channel of a block.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = group_index(group) * 64u + thread;
  if (i >= p.size) { return; }
  let block = blocks[i / p.channels];
  let channel = i % p.channels;
  let at = block.w * p.channels + channel - p.centroids_from;
  var mean = 0.0; // the first key of a block takes no notice of what was there before it, NaN included
  if (block.y > 0u) { mean = centroids[at]; }
  for (var j = 0u; j < block.z; j++) {
    mean += (k_at((block.x + j) * p.channels + channel) - mean) / f32(block.y + j + 1u);
  }
  centroids[at] = mean;
}
