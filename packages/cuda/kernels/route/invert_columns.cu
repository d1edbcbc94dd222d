// Turning a routing round, step 2 of 4: where each chunk's entries begin in each block's list, and how long the lists
// are.
#include "common/warp.cuh"

constexpr int THREADS = 128;
constexpr int AT_ONCE = 32;  // that a thread waits for together

// matrix: counts [H][chunks][columns]; becomes the sums over the chunks before. counts: [H][columns], the sums over
// all chunks.
// Grid: (columns / THREADS, H).
extern "C" __global__ void __launch_bounds__(THREADS)
    invert_columns(int* matrix, int* counts, int chunks, int columns) {
  const int column = blockIdx.x * THREADS + threadIdx.x;
  if (column >= columns) return;
  int* at = matrix + static_cast<long long>(blockIdx.y) * chunks * columns + column;
  int sum = 0;
  for (int begin = 0; begin < chunks; begin += AT_ONCE, at += static_cast<long long>(AT_ONCE) * columns) {
    int count[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      count[i] = begin + i < chunks ? at[static_cast<long long>(i) * columns] : 0;
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      if (begin + i < chunks) at[static_cast<long long>(i) * columns] = sum;
      sum += count[i];
    }
  }
  counts[static_cast<long long>(blockIdx.y) * columns + column] = sum;
}
