// The row of [T, H] of an entry's query.
fn queryRow(entry: u32, head: u32) -> u32 {
  let row = entry / p.slots;
  return (p.firstToken + row / p.group) * p.kvHeads * p.group + (p.firstHead + head) * p.group + row % p.group;
}
