// Exclusive scan of the lists' tiles, in place, by one workgroup. Eight reads at a time, so that a thread seldom waits.

const THREADS = 256u;

var<workgroup> sums: array<u32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) thread: u32) {
  let share = (p.listCount + THREADS - 1u) / THREADS;
  let first = min(thread * share, p.listCount);
  let last = min(first + share, p.listCount);
  var sum = 0u;
  for (var list = first; list < last; list += 8u) {
    var tiles: array<u32, 8>;
    @unroll for (var n = 0u; n < 8u; n++) { tiles[n] = lists[p.startsAt + min(list + n, last - 1u)]; }
    @unroll for (var n = 0u; n < 8u; n++) { sum += select(0u, tiles[n], list + n < last); }
  }
  sums[thread] = sum;
  workgroupBarrier();
  for (var step = 1u; step < THREADS; step *= 2u) {
    var before = 0u;
    if (thread >= step) { before = sums[thread - step]; }
    workgroupBarrier();
    sums[thread] += before;
    workgroupBarrier();
  }
  var start = sums[thread] - sum;
  for (var list = first; list < last; list += 8u) {
    var tiles: array<u32, 8>;
    @unroll for (var n = 0u; n < 8u; n++) { tiles[n] = lists[p.startsAt + min(list + n, last - 1u)]; }
    @unroll for (var n = 0u; n < 8u; n++) {
      if (list + n < last) {
        lists[p.startsAt + list + n] = start;
        start += tiles[n];
      }
    }
  }
  if (thread == THREADS - 1u) { lists[p.startsAt + p.listCount] = start; }
}
