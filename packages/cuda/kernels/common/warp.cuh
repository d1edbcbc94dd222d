// Threads of a warp together.
#pragma once
#include <cstdint>

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ int lane_id() { return threadIdx.x % WARP; }
__device__ __forceinline__ int warp_id() { return threadIdx.x / WARP; }

// Sum over each `Lanes` neighbouring lanes, the same in all of them.
template <int Lanes = WARP>
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = Lanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
  }
  return x;
}

// The values of the lanes below this one, summed; `total` is the sum over all.
__device__ __forceinline__ int warp_prefix(int x, int& total) {
  int sum = x;
#pragma unroll
  for (int distance = 1; distance < WARP; distance *= 2) {
    const int below = __shfl_up_sync(ALL_LANES, sum, distance);
    if (lane_id() >= distance) sum += below;
  }
  total = __shfl_sync(ALL_LANES, sum, WARP - 1);
  return sum - x;
}
