// Turning a routing round, step 4 of 4: the entries go to their lists, in order of (32 queries, slot, query).
#include "route/invert.cuh"

// matrix: each chunk's first place in each list. starts: [H][columns]. entries: an entry is (token − first of its
// range) · slots + slot; the region of a segment begins at (head · tokens + its first token − first_token) · slots.
// Shared memory as invert_count.
// phase: [segments + 1], items of the segments before, by one warp more than there are chunks.
// Grid: (ranges · chunks + 1, H).
extern "C" __global__ void __launch_bounds__(WARP)
    invert_scatter(const int* __restrict__ indices, const Range* ranges, int* matrix, const int* starts,
                   const int* item_counts, int* entries, int* phase, int heads, int slots, int chunks,
                   int chunk_queries, int columns, int in_shared, int first_token, int tokens) {
  if (blockIdx.x == gridDim.x - 1) {
    if (blockIdx.y != 0) return;
    const int segments = (gridDim.x - 1) / chunks * gridDim.y;
    int before = 0;
    for (int begin = 0; begin <= segments; begin += WARP) {
      const int segment = begin + lane_id();
      int total;
      const int sum = before + warp_prefix(segment < segments ? item_counts[segment] : 0, total);
      if (segment <= segments) phase[segment] = sum;
      before += total;
    }
    return;
  }

  const Chunk chunk(ranges, chunks, chunk_queries);
  int* row = chunk.row(matrix, chunks, columns);
  const int* list_starts = starts + static_cast<long long>(chunk.head) * columns + chunk.range.first_block;
  int* places = in_shared ? reinterpret_cast<int*>(sharedMemory) : row;  // of the next entry of each list
  for (int block = lane_id(); block < chunk.range.blocks; block += WARP) {
    places[block] = list_starts[block] + row[block];
  }
  __syncwarp();
  int* region = entries + (static_cast<long long>(chunk.head) * tokens + chunk.range.query_begin - first_token) * slots;
  visit_entries(chunk, indices, heads, slots, [&](int block, int entry, unsigned peers) {
    const int place = block >= 0 ? places[block] : 0;
    const int rank = __popc(peers & ((1u << lane_id()) - 1));
    if (block >= 0) region[place + rank] = entry;
    __syncwarp();
    if (block >= 0 && rank == 0) places[block] = place + __popc(peers);
    __syncwarp();
  });
}
