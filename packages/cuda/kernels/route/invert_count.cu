// Turning a routing round, step 1 of 4: how often each chunk of queries chose each block.
#include "route/invert.cuh"

constexpr int THREADS = 128;

// indices: [T, heads, slots], from the first head of the grid on. matrix: [H][chunks][columns].
// Dynamic shared memory: a counter for each block of the window.
extern "C" __global__ void __launch_bounds__(THREADS)
    invert_count(const int* __restrict__ indices, const Range* ranges, int* matrix, int heads, int slots, int chunks,
                 int chunk_queries, int columns, int window) {
  const Chunk chunk(ranges, chunks, chunk_queries, window);
  int* counts = reinterpret_cast<int*>(sharedMemory);
  const int thread = threadIdx.x;
  for (int block = thread; block < chunk.blocks; block += THREADS) counts[block] = 0;
  __syncthreads();
  visit_entries(chunk, indices, heads, slots, thread, THREADS, [&](const int (&blocks)[SLOTS_AT_ONCE], int) {
#pragma unroll
    for (int u = 0; u < SLOTS_AT_ONCE; u++) {
      if (blocks[u] >= 0) atomicAdd(&counts[blocks[u]], 1);
    }
  });
  __syncthreads();
  int* row = chunk.row(matrix, chunks, columns);
  for (int block = thread; block < chunk.blocks; block += THREADS) row[block] = counts[block];
}
