// Work items of routed attention's backward pass: for each chunk of a block, the joined lists of a key head's query heads,
// cut into items.
#include "common/cta.cuh"
#include "common/range.cuh"

constexpr int THREADS = 512;
// Items begin at multiples of this many rows.
constexpr int ROW_STEP = 64;

// A segment is a range of queries of one key head, number head · ranges + range. `count` entries become
// ceil(count / most_rows) items at most, of equal size up to ROW_STEP, but at least one. most_rows is a multiple of
// ROW_STEP. counts: [heads][columns]. items: {chunk, begin, rows, piece}, in a region of `most_items` a segment.
// item_counts: [segments]. pieces: [key heads][columns], {first piece, items of a chunk}. Pieces are numbered from a bound
// on those of the segments before: a list that is cut has at most 2 / most_rows pieces a row.
// Grid: (ranges, key heads).
extern "C" __global__ void __launch_bounds__(THREADS)
    cut_lists(const int* counts, const Range* ranges, int4* items, int* item_counts, int2* pieces, int columns,
              int first_token, int tokens, int slots, int group, int chunks, int most_rows, int most_items) {
  const Range range = ranges[blockIdx.x];
  const int segment = blockIdx.y * gridDim.x + blockIdx.x;
  const long long rows_before =
      (static_cast<long long>(blockIdx.y) * tokens + range.query_begin - first_token) * slots * group * chunks;
  const int first_piece = static_cast<int>(2 * rows_before / most_rows);
  int4* region = items + static_cast<long long>(segment) * most_items;
  int items_before = 0, pieces_before = 0;  // of one chunk a block
  for (int begin = 0; begin < range.blocks; begin += THREADS) {
    const int block = begin + threadIdx.x;
    const bool there = block < range.blocks;
    int count = 0;
    for (int member = 0; there && member < group; member++) {
      const long long head = static_cast<long long>(blockIdx.y) * group + member;
      count += counts[head * columns + range.first_block + block];
    }
    const int parts = max(1, ceil_div(count, most_rows));
    const int rows = max(1, ceil_div(ceil_div(count, parts), ROW_STEP)) * ROW_STEP;
    const int cut = there ? max(1, ceil_div(count, rows)) : 0;

    int item_total, piece_total;
    const int first = items_before + cta_prefix<THREADS>(cut, item_total);
    const int piece = pieces_before + cta_prefix<THREADS>(cut > 1 ? cut : 0, piece_total);
    items_before += item_total;
    pieces_before += piece_total;
    if (!there) continue;
    const int piece_of_block = first_piece + piece * chunks;
    pieces[static_cast<long long>(blockIdx.y) * columns + range.first_block + block] = make_int2(piece_of_block, cut);
    for (int i = 0; i < chunks * cut; i++) {
      const int row = i % cut * rows;
      region[first * chunks + i] =
          make_int4(block * chunks + i / cut, row, min(rows, count - row), cut > 1 ? piece_of_block + i : -1);
    }
  }
  if (threadIdx.x == 0) item_counts[segment] = items_before * chunks;
}
