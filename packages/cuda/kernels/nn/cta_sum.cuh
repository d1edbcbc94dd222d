// Sums over the threads of a CTA, in a fixed order.
#pragma once
#include "common/warp.cuh"

// The same in every thread. Every thread of the CTA calls it.
template <int Threads>
__device__ __forceinline__ float cta_sum(float x) {
  __shared__ float warp_sums[Threads / WARP];
  x = warp_sum(x);
  __syncthreads();  // the sums of the call before have been read
  if (lane_id() == 0) warp_sums[warp_id()] = x;
  __syncthreads();
  float total = 0.0f;
  for (int warp = 0; warp < Threads / WARP; warp++) total += warp_sums[warp];
  return total;
}
