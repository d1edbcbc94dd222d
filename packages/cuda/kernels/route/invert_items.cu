// Turning a routing round, step 3 of 4: where the lists begin, and the lists cut into work items.
#include "common/cta.cuh"
#include "common/range.cuh"

constexpr int THREADS = 512;
// Items begin at multiples of this many rows of their list.
constexpr int ROW_STEP = 64;

// A segment is a range of queries of one head, number head · ranges + range. A list of `count` entries becomes
// ceil(count / most_rows) items at most, of equal size up to ROW_STEP. most_rows is a multiple of ROW_STEP.
// counts, starts: [H][columns], a list begins in its segment's region of the entries. items: {block, start, rows, 0},
// in a region of `most_items` a segment. item_counts: [segments]. Grid: (ranges, H).
extern "C" __global__ void __launch_bounds__(THREADS)
    invert_items(const int* counts, const Range* ranges, int* starts, int4* items, int* item_counts, int columns,
                 int most_rows, int most_items) {
  const Range range = ranges[blockIdx.x];
  const int segment = blockIdx.y * gridDim.x + blockIdx.x;
  const long long first_column = static_cast<long long>(blockIdx.y) * columns + range.first_block;
  int4* region = items + static_cast<long long>(segment) * most_items;
  int entries_before = 0, items_before = 0;
  for (int begin = 0; begin < range.blocks; begin += THREADS) {
    const int block = begin + threadIdx.x;
    const int count = block < range.blocks ? counts[first_column + block] : 0;
    const int parts = max(1, ceil_div(count, most_rows));
    const int rows = ceil_div(ceil_div(count, parts), ROW_STEP) * ROW_STEP;
    const int pieces = count == 0 ? 0 : ceil_div(count, rows);

    int entries, item_total;
    const int start = entries_before + cta_prefix<THREADS>(count, entries);
    const int first = items_before + cta_prefix<THREADS>(pieces, item_total);
    entries_before += entries;
    items_before += item_total;
    if (block >= range.blocks) continue;
    starts[first_column + block] = start;
    for (int i = 0; i < pieces; i++) {
      region[first + i] = make_int4(block, start + i * rows, min(rows, count - i * rows), 0);
    }
  }
  if (threadIdx.x == 0) item_counts[segment] = items_before;
}
