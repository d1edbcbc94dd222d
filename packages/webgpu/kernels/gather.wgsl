// Copies elements by their bits: bitsAt(i) are those of element i of the output. Of packed dtypes a word holds two.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let word = group_index(group) * 64u + thread;
  if (word >= p.words) { return; }
  if (PACKED) {
    out[word] = bitsAt(2u * word) | (bitsAt(2u * word + 1u) << 16u);
  } else {
    out[word] = bitsAt(word);
  }
}
