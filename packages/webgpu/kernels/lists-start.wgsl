// Exclusive scan of the lists' tiles, in place, by one workgroup.

const THREADS = 256u;

var<workgroup> sums: array<u32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) thread: u32) {
  let share = (p.listCount + THREADS - 1u) / THREADS;
  let first = min(thread * share, p.listCount);
  let last = min(first + share, p.listCount);
  var sum = 0u;
  for (var list = first; list < last; list++) { sum += lists[p.startsAt + list]; }
  sums[thread] = sum;
  workgroupBarrier();
  var start = 0u;
  for (var before = 0u; before < thread; before++) { start += sums[before]; }
  for (var list = first; list < last; list++) {
    let tiles = lists[p.startsAt + list];
    lists[p.startsAt + list] = start;
    start += tiles;
  }
  if (thread == THREADS - 1u) { lists[p.startsAt + p.listCount] = start; }
}
