// What the kernels that turn a routing round (for each block, the queries that chose it) have in common.
//
// A range's queries are cut into chunks; a warp takes a chunk of one head, 32 queries at a time, slot by slot. Lanes
// that chose the same block find each other with __match_any_sync: so each entry has a place that depends on nothing
// but the routing.
#pragma once
#include "common/range.cuh"
#include "common/shared.cuh"
#include "common/warp.cuh"

// One chunk of one head's queries.
struct Chunk {
  Range range;
  int head;
  int number;  // in the range
  int begin;   // queries of the range
  int end;

  // Grid: (ranges · chunks, H), a warp each.
  __device__ __forceinline__ Chunk(const Range* ranges, int chunks, int chunk_queries)
      : range(ranges[blockIdx.x / chunks]),
        head(blockIdx.y),
        number(blockIdx.x % chunks),
        begin(min(number * chunk_queries, range.queries)),
        end(min(begin + chunk_queries, range.queries)) {}

  // This chunk's row of the matrix of counts [H][chunks][columns], one column for each block of each range.
  __device__ __forceinline__ int* row(int* matrix, int chunks, int columns) const {
    return matrix + (static_cast<long long>(head) * chunks + number) * columns + range.first_block;
  }
};

// Calls visit(block, entry, peers) for the chunk's entries in order, by all lanes together; `block` is −1 where a
// lane has none.
// `peers` are the lanes with the same block. indices: [T, heads, slots].
template <typename Visit>
__device__ __forceinline__ void visit_entries(const Chunk& chunk, const int* indices, int heads, int slots,
                                              Visit visit) {
  constexpr int AT_ONCE = 4;  // slots: 16 bytes
  const bool aligned = slots % AT_ONCE == 0;
  const auto fetch = [&](int query, int slot) {
    int4 blocks = make_int4(-1, -1, -1, -1);
    if (query >= chunk.end) return blocks;
    const long long token = chunk.range.query_begin + query;
    const int* row = indices + (token * heads + chunk.head) * slots + slot;
    if (aligned) return *reinterpret_cast<const int4*>(row);
    blocks.x = row[0];
    if (slot + 1 < slots) blocks.y = row[1];
    if (slot + 2 < slots) blocks.z = row[2];
    if (slot + 3 < slots) blocks.w = row[3];
    return blocks;
  };
  int query = chunk.begin + lane_id(), slot = 0;
  int4 next = fetch(query, slot);
  while (query - lane_id() < chunk.end) {
    const int4 blocks = next;
    const int entry = query * slots + slot;
    slot += AT_ONCE;
    if (slot >= slots) {
      slot = 0;
      query += WARP;
    }
    next = fetch(query, slot);
    visit(blocks.x, entry, __match_any_sync(ALL_LANES, blocks.x));
    visit(blocks.y, entry + 1, __match_any_sync(ALL_LANES, blocks.y));
    visit(blocks.z, entry + 2, __match_any_sync(ALL_LANES, blocks.z));
    visit(blocks.w, entry + 3, __match_any_sync(ALL_LANES, blocks.w));
  }
}
