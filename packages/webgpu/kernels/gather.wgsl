// Copies elements by their bits: bitsAt(i) are those of element i of the output. Of packed dtypes a word holds two. Where what is
// copied cannot be bound at once, p.adds: bits come in several launches, each of which has zeros for what the others have.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let word = p.firstWord + group_index(group) * 64u + thread;
  if (word >= p.endWord) { return; }
  var bits = 0u;
  if (PACKED) {
    bits = bitsAt(2u * word) | (bitsAt(2u * word + 1u) << 16u);
  } else {
    bits = bitsAt(word);
  }
  if (p.adds != 0u) { bits |= out[word - p.out_from]; }
  out[word - p.out_from] = bits;
}
