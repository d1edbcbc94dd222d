// Where the work items of each segment begin among all: sums of the numbers of items before.
#include "common/cta.cuh"

constexpr int THREADS = 512;

// item_counts: [segments]. item_starts: [segments + 1]. One CTA.
extern "C" __global__ void __launch_bounds__(THREADS) item_starts(const int* item_counts, int* item_starts, int segments) {
  int before = 0;
  for (int begin = 0; begin <= segments; begin += THREADS) {
    const int segment = begin + threadIdx.x;
    int total;
    const int sum = before + cta_prefix<THREADS>(segment < segments ? item_counts[segment] : 0, total);
    if (segment <= segments) item_starts[segment] = sum;
    before += total;
  }
}
