// The place in `parts` of the first piece of a block's rows. Of lists, pieces are p.pieceTiles tiles long, so dividing where a list
// starts leaves room for its pieces; otherwise every item is a piece.
fn firstPiece(head: u32, block: u32) -> u32 {
  if (LISTED) {
    let list = head * p.blocks + block;
    return lists[p.startsAt + list] / p.pieceTiles + list - lists[p.startsAt + p.firstList] / p.pieceTiles - p.firstList;
  }
  return (lists[p.startsAt + block] - p.firstItem) * p.headCount + head;
}
