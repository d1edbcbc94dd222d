// Threads of a CTA together.
#pragma once
#include "common/warp.cuh"

// The values of the threads before this one, summed; `total` is the sum over all. Every thread of the CTA calls it.
template <int Threads>
__device__ __forceinline__ int cta_prefix(int x, int& total) {
  __shared__ int warp_sums[Threads / WARP];
  int warp_total;
  int sum = warp_prefix(x, warp_total);
  __syncthreads();  // the sums of the call before have been read
  if (lane_id() == 0) warp_sums[warp_id()] = warp_total;
  __syncthreads();
  total = 0;
  for (int warp = 0; warp < Threads / WARP; warp++) {
    if (warp < warp_id()) sum += warp_sums[warp];
    total += warp_sums[warp];
  }
  return sum;
}
