// What the kernels that turn a routing round (for each block, the queries that chose it) have in common.
//
// A range's queries are cut into chunks, its blocks into windows whose counters fit the shared memory; a CTA takes a
// chunk and a window of one head.
#pragma once
#include "common/range.cuh"
#include "common/shared.cuh"
#include "common/warp.cuh"

// One chunk of one head's queries, and one window of their blocks.
struct Chunk {
  Range range;
  int head;
  int number;       // in the range
  int begin;        // queries of the range
  int end;
  int first_block;  // of the range
  int blocks;       // in the window; none or fewer, where the range has fewer

  // Grid: (ranges · chunks, H, windows).
  __device__ __forceinline__ Chunk(const Range* ranges, int chunks, int chunk_queries, int window)
      : range(ranges[blockIdx.x / chunks]),
        head(blockIdx.y),
        number(blockIdx.x % chunks),
        begin(min(number * chunk_queries, range.queries)),
        end(min(begin + chunk_queries, range.queries)),
        first_block(blockIdx.z * window),
        blocks(min(window, range.blocks - first_block)) {}

  // The window's part of this chunk's row of the matrix [H][chunks][columns], a column for each block of each range.
  __device__ __forceinline__ int* row(int* matrix, int chunks, int columns) const {
    return matrix + (static_cast<long long>(head) * chunks + number) * columns + range.first_block + first_block;
  }
};

// Slots of a query that are visited together.
constexpr int SLOTS_AT_ONCE = 8;

// Calls visit(blocks, entry) for the queries thread, thread + threads … of the chunk, SLOTS_AT_ONCE slots at a time, by all
// threads alike: of slots that are not there, beyond the chunk's end and for blocks outside of the window, a block is −1.
// Blocks count from the window's first, entries `query · slots + slot` from the chunk's first: blocks[u] is of entry + u.
// indices: [T, heads, slots].
template <typename Visit>
__device__ __forceinline__ void visit_entries(const Chunk& chunk, const int* indices, int heads, int slots, int thread,
                                              int threads, Visit visit) {
  const bool aligned = slots % 4 == 0;
  const int queries = chunk.end - chunk.begin;
  const int* rows = indices + (static_cast<long long>(chunk.range.query_begin + chunk.begin) * heads + chunk.head) * slots;
  const auto fetch = [&](int (&blocks)[SLOTS_AT_ONCE], int query, int slot) {
    const int left = query < queries ? slots - slot : 0;
    const int* row = rows + static_cast<long long>(query) * heads * slots + slot;
#pragma unroll
    for (int u = 0; u < SLOTS_AT_ONCE; u += 4) {
      int4 four = make_int4(-1, -1, -1, -1);
      if (aligned) {
        if (u < left) four = *reinterpret_cast<const int4*>(row + u);
      } else {
        if (u < left) four.x = row[u];
        if (u + 1 < left) four.y = row[u + 1];
        if (u + 2 < left) four.z = row[u + 2];
        if (u + 3 < left) four.w = row[u + 3];
      }
      blocks[u] = four.x, blocks[u + 1] = four.y, blocks[u + 2] = four.z, blocks[u + 3] = four.w;
    }
  };
  int query = thread, slot = 0, next[SLOTS_AT_ONCE];
  fetch(next, query, slot);
  while (query - thread < queries) {
    int blocks[SLOTS_AT_ONCE];
#pragma unroll
    for (int u = 0; u < SLOTS_AT_ONCE; u++) {
      const int shifted = next[u] - chunk.first_block;
      blocks[u] = shifted >= 0 && shifted < chunk.blocks ? shifted : -1;
    }
    const int entry = query * slots + slot;
    slot += SLOTS_AT_ONCE;
    if (slot >= slots) {
      slot = 0;
      query += threads;
    }
    fetch(next, query, slot);
    visit(blocks, entry);
  }
}
