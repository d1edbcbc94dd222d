// dk and dv: the sum of the parts of each block's pieces, in their order. One thread for four channels of a key.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = group_index(group) * 64u + thread;
  if (i >= p.size) { return; }
  let c = i % DQ;
  let key = i / DQ % p.blockSize;
  let index = i / DQ / p.blockSize;
  var head = index % p.headCount;
  var block = p.firstBlock + index / p.headCount;
  if (LISTED) {
    head = (p.firstList + index) / p.blocks;
    block = (p.firstList + index) % p.blocks;
  }
  let sequence = sequenceOf(block, 4u);
  let sequenceKey = (block - sequence.firstBlock) * p.blockSize + key;
  if (sequenceKey >= sequence.keys) { return; }
  var pieces: u32;
  var step = 1u;
  if (LISTED) {
    let list = p.firstList + index;
    pieces = (lists[p.startsAt + list + 1u] - lists[p.startsAt + list] + p.pieceTiles - 1u) / p.pieceTiles;
  } else {
    pieces = lists[p.startsAt + block + 1u] - lists[p.startsAt + block];
    step = p.headCount;
  }
  let first = firstPiece(head, block);
  var dkRow = vec4<f32>();
  var dvRow = vec4<f32>();
  for (var piece = 0u; piece < pieces; piece++) {
    let at = ((first + piece * step) * p.blockSize + key) * (2u * DQ) + c;
    dkRow += parts[at];
    dvRow += parts[at + DQ];
  }
  let row = ((sequence.key + sequenceKey) * p.kvHeads + p.firstHead + head) * p.d;
  if (p.accumulate != 0u) {
    dk_add(row, 4u * c, dkRow);
    dv_add(row, 4u * c, dvRow);
  } else {
    dk_put(row, 4u * c, dkRow);
    dv_put(row, 4u * c, dvRow);
  }
}
