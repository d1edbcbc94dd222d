// Turning a routing round, step 4 of 4: the entries go to their lists, in order of (32 queries, slot, query).
#include "common/cta.cuh"
#include "route/invert.cuh"

constexpr int THREADS = 128;
// Lanes that copy a run of entries together, and blocks that a thread has to do with at once.
constexpr int RUN_LANES = 4;
constexpr int AT_ONCE = 4;

// Puts a chunk's entries in order of their lists: a warp does. places: of the next entry of each list. masks: zero.
__device__ __forceinline__ void put_in_order(const Chunk& chunk, const int* indices, int heads, int slots,
                                             unsigned* masks, unsigned short* places, unsigned short* sorted) {
  const int lane = lane_id();
  visit_entries(chunk, indices, heads, slots, lane, WARP, [&](int block, int entry) {
    if (block >= 0) atomicOr(&masks[block], 1u << lane);
    __syncwarp();
    const unsigned peers = block >= 0 ? masks[block] : 0;
    const int place = block >= 0 ? places[block] : 0;
    const int rank = __popc(peers & ((1u << lane) - 1));
    if (block >= 0) sorted[place + rank] = entry;
    __syncwarp();
    if (block >= 0 && rank == 0) {
      masks[block] = 0;
      places[block] = place + __popc(peers);
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
// Dynamic shared memory: for each block of the window a mask, later a target, and a place (16 bits), and the chunk's entries (16 bits).
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
  unsigned* masks = reinterpret_cast<unsigned*>(sharedMemory);
  auto* places = reinterpret_cast<unsigned short*>(masks + window);  // of the next entry of each list
  unsigned short* sorted = places + window;

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
      if (first + u < chunk.blocks) {
        masks[first + u] = 0;
        places[first + u] = place;
      }
      place += counts_here[u];
    }
  }
  __syncthreads();
  if (threadIdx.x < WARP) put_in_order(chunk, indices, heads, slots, masks, places, sorted);
  __syncthreads();

  // From here on `masks` are where the chunk's entries of each list go.
  int* targets = reinterpret_cast<int*>(masks);
#pragma unroll AT_ONCE
  for (int block = threadIdx.x; block < chunk.blocks; block += THREADS) {
    targets[block] = starts[first_column + block] + row[block];
  }
  __syncthreads();
  int* region = entries + (static_cast<long long>(chunk.head) * tokens + chunk.range.query_begin - first_token) * slots;
  const int first_entry = chunk.begin * slots;
  for (int block = threadIdx.x / RUN_LANES; block < chunk.blocks; block += THREADS / RUN_LANES) {
    const int begin = block > 0 ? places[block - 1] : 0, end = places[block];
    int* list = region + targets[block] - begin;
    for (int i = begin + lane % RUN_LANES; i < end; i += RUN_LANES) list[i] = first_entry + sorted[i];
  }
}
