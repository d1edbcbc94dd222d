// Turning a routing round, step 1 of 4: how often each chunk of queries chose each block.
#include "route/invert.cuh"

// indices: [T, heads, slots], from the first head of the grid on. matrix: [H][chunks][columns].
// Counts are kept in dynamic shared memory (a counter for each block of a range), or without it (in_shared = 0) in
// the matrix itself.
extern "C" __global__ void __launch_bounds__(WARP)
    invert_count(const int* __restrict__ indices, const Range* ranges, int* matrix, int heads, int slots, int chunks,
                 int chunk_queries, int columns, int in_shared) {
  const Chunk chunk(ranges, chunks, chunk_queries);
  int* row = chunk.row(matrix, chunks, columns);
  int* counts = in_shared ? reinterpret_cast<int*>(sharedMemory) : row;
  for (int block = lane_id(); block < chunk.range.blocks; block += WARP) counts[block] = 0;
  __syncwarp();
  visit_entries(chunk, indices, heads, slots, [&](int block, int, unsigned peers) {
    const bool first_peer = lane_id() == __ffs(peers) - 1;
    if (block >= 0 && first_peer) counts[block] += __popc(peers);
    __syncwarp();
  });
  if (!in_shared) return;
  for (int block = lane_id(); block < chunk.range.blocks; block += WARP) row[block] = counts[block];
}
