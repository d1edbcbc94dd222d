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

// Calls visit(block, entry) for the queries thread, thread + threads … of the chunk, slot by slot, by all threads
// alike: beyond the chunk's end and for blocks outside of the window, `block` is −1. Blocks count from the window's
// first, entries `query · slots + slot` from the chunk's first. indices: [T, heads, slots].
template <typename Visit>
__device__ __forceinline__ void visit_entries(const Chunk& chunk, const int* indices, int heads, int slots, int thread,
                                              int threads, Visit visit) {
  constexpr int AT_ONCE = 4;  // slots: 16 bytes
  const bool aligned = slots % AT_ONCE == 0;
  const int queries = chunk.end - chunk.begin;
  const auto fetch = [&](int query, int slot) {
    int4 blocks = make_int4(-1, -1, -1, -1);
    if (query >= queries) return blocks;
    const long long token = chunk.range.query_begin + chunk.begin + query;
    const int* row = indices + (token * heads + chunk.head) * slots + slot;
    if (aligned) return *reinterpret_cast<const int4*>(row);
    blocks.x = row[0];
    if (slot + 1 < slots) blocks.y = row[1];
    if (slot + 2 < slots) blocks.z = row[2];
    if (slot + 3 < slots) blocks.w = row[3];
    return blocks;
  };
  const auto within = [&](int block) {
    const int shifted = block - chunk.first_block;
    return shifted >= 0 && shifted < chunk.blocks ? shifted : -1;
  };
  int query = thread, slot = 0;
  int4 next = fetch(query, slot);
  while (query - thread < queries) {
    const int4 blocks = next;
    const int entry = query * slots + slot;
    slot += AT_ONCE;
    if (slot >= slots) {
      slot = 0;
      query += threads;
    }
    next = fetch(query, slot);
    visit(within(blocks.x), entry);
    visit(within(blocks.y), entry + 1);
    visit(within(blocks.z), entry + 2);
    visit(within(blocks.w), entry + 3);
  }
}
