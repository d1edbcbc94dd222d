// Turning a routing round, step 4 of 4: the entries go to their lists, in order of (32 queries, 8 slots, query).
#include "common/cta.cuh"
#include "route/invert.cuh"

constexpr int THREADS = 128;
constexpr int AT_ONCE = 4;      // blocks that a thread has to do with at once
constexpr int ENTRY_BITS = 14;  // of a chunk's entry, below its block

// A chunk's part of one block's list, while its entries are put in order.
struct alignas(8) List {
  unsigned mask;  // lanes that chose the block; in the end: from a place in shared memory to one in the list
  int place;      // of the next entry in shared memory
};

// Puts a chunk's entries in order of their lists, each with its block in the high bits: a warp does. A query chooses a block
// once, so a lane's bit in the block's mask stands for one entry.
__device__ __forceinline__ void put_in_order(const Chunk& chunk, const int* indices, int heads, int slots, List* lists,
                                             unsigned* sorted) {
  const int lane = lane_id();
  visit_entries(chunk, indices, heads, slots, lane, WARP, [&](const int (&blocks)[SLOTS_AT_ONCE], int entry) {
#pragma unroll
    for (int u = 0; u < SLOTS_AT_ONCE; u++) {
      if (blocks[u] >= 0) atomicOr(&lists[blocks[u]].mask, 1u << lane);
    }
    __syncwarp();
    List found[SLOTS_AT_ONCE];
#pragma unroll
    for (int u = 0; u < SLOTS_AT_ONCE; u++) {
      if (blocks[u] >= 0) found[u] = lists[blocks[u]];
    }
    __syncwarp();
#pragma unroll
    for (int u = 0; u < SLOTS_AT_ONCE; u++) {
      if (blocks[u] < 0) continue;
      const int rank = __popc(found[u].mask & ((1u << lane) - 1));
      sorted[found[u].place + rank] = static_cast<unsigned>(blocks[u]) << ENTRY_BITS | entry + u;
      if (rank == 0) lists[blocks[u]] = {0, found[u].place + __popc(found[u].mask)};
    }
    __syncwarp();
  });
}

// matrix: each chunk's first place in each list. counts, starts: [H][columns]. entries: an entry is (token − first of
// its range) · slots + slot; the region of a segment begins at (head · tokens + its first token − first_token) · slots.
// phase: [segments + 1], items of the segments before, by one warp more than there are chunks.
//
// The entries of a chunk are put in order in shared memory first: scattered through global memory, each would move 32
// bytes. Lanes that chose the same block at once find each other by a mask of the block's: so each entry has a place
// that depends on nothing but the routing. One warp puts them in order; the others help before and after.
// Dynamic shared memory: a List for each block of the window, and the chunk's entries.
// Grid: (ranges · chunks + 1, H, windows).
extern "C" __global__ void __launch_bounds__(THREADS)
    invert_scatter(const int* __restrict__ indices, const Range* ranges, int* matrix, const int* counts,
                   const int* starts, const int* item_counts, int* entries, int* phase, int heads, int slots,
                   int chunks, int chunk_queries, int columns, int window, int first_token, int tokens) {
  const int lane = lane_id();
  if (blockIdx.x == gridDim.x - 1) {
    if (blockIdx.y != 0 || blockIdx.z != 0 || threadIdx.x >= WARP) return;
    const int segments = (gridDim.x - 1) / chunks * gridDim.y;
    int before = 0;
    for (int begin = 0; begin <= segments; begin += WARP) {
      const int segment = begin + lane;
      int total;
      const int sum = before + warp_prefix(segment < segments ? item_counts[segment] : 0, total);
      if (segment <= segments) phase[segment] = sum;
      before += total;
    }
    return;
  }

  const Chunk chunk(ranges, chunks, chunk_queries, window);
  const long long first_column = static_cast<long long>(chunk.head) * columns + chunk.range.first_block + chunk.first_block;
  const int* row = chunk.row(matrix, chunks, columns);
  const int* next_row = chunk.number + 1 < chunks ? row + columns : counts + first_column;
  List* lists = reinterpret_cast<List*>(sharedMemory);
  unsigned* sorted = reinterpret_cast<unsigned*>(lists + window);

  int before = 0;
  for (int begin = 0; begin < chunk.blocks; begin += AT_ONCE * THREADS) {
    const int first = begin + threadIdx.x * AT_ONCE;
    int counts_here[AT_ONCE], sum = 0, total;
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      counts_here[u] = first + u < chunk.blocks ? next_row[first + u] - row[first + u] : 0;
      sum += counts_here[u];
    }
    int place = before + cta_prefix<THREADS>(sum, total);
    before += total;
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      if (first + u < chunk.blocks) lists[first + u] = {0, place};
      place += counts_here[u];
    }
  }
  __syncthreads();
  if (threadIdx.x < WARP) put_in_order(chunk, indices, heads, slots, lists, sorted);
  __syncthreads();

#pragma unroll AT_ONCE
  for (int block = threadIdx.x; block < chunk.blocks; block += THREADS) {
    lists[block].mask = starts[first_column + block] + row[block] - (block > 0 ? lists[block - 1].place : 0);
  }
  __syncthreads();
  int* region = entries + (static_cast<long long>(chunk.head) * tokens + chunk.range.query_begin - first_token) * slots;
  const int first_entry = chunk.begin * slots;
  for (int i = threadIdx.x; i < before; i += THREADS) {
    const unsigned entry = sorted[i];
    region[static_cast<int>(lists[entry >> ENTRY_BITS].mask) + i] = first_entry + (entry & ((1u << ENTRY_BITS) - 1));
  }
}
