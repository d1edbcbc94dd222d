// The block, among all of the batch, that an entry's query attends; NONE if the slot is unused, or the own block and not WITH_OWN. SLOTS and GROUP
// are constants, as division by them is dear.
const NONE = 0xffffffffu;

fn chosenBlock(entry: u32, kvHead: u32) -> u32 {
  let row = entry / SLOTS;
  let token = p.firstToken + row / GROUP;
  let at = (token * p.kvHeads * GROUP + kvHead * GROUP + row % GROUP) * SLOTS + entry % SLOTS;
  let block = routing[at - p.routing_from];
  if (block < 0) { return NONE; }
  let sequence = sequenceOf(token, 0u);
  if (p.causal != 0u && !WITH_OWN) {
    let position = i32(token - sequence.query) + i32(sequence.keys) - i32(sequence.queries);
    if (position >= 0 && block == position / i32(p.blockSize)) { return NONE; }
  }
  return sequence.firstBlock + u32(block);
}
