// The sum of all elements, or of their squares, in two steps of fixed order: each CTA sums its share, then one CTA the
// shares.
#include "nn/cta_sum.cuh"
#include "nn/group.cuh"

constexpr int THREADS = 256;

// parts: [gridDim.x].
template <typename T, bool Squares>
__device__ __forceinline__ void sum_part(const T* __restrict__ x, float* parts, long long size) {
  const long long step = static_cast<long long>(gridDim.x) * THREADS * GROUP;
  float sum[GROUP] = {};
  for (long long at = (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x) * GROUP; at < size; at += step) {
    float group[GROUP];
    load_group(group, x + at, size - at);
#pragma unroll
    for (int i = 0; i < GROUP; i++) sum[i] += Squares ? group[i] * group[i] : group[i];
  }
#pragma unroll
  for (int i = 1; i < GROUP; i++) sum[0] += sum[i];
  const float total = cta_sum<THREADS>(sum[0]);
  if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

// One CTA.
extern "C" __global__ void __launch_bounds__(THREADS) sum_parts(const float* parts, int count, float* out) {
  float sum = 0.0f;
  for (int i = threadIdx.x; i < count; i += THREADS) sum += parts[i];
  const float total = cta_sum<THREADS>(sum);
  if (threadIdx.x == 0) *out = total;
}

#define SUM(T)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS) sum_##T(const T* x, float* parts, long long size) {       \
    sum_part<T, false>(x, parts, size);                                                                           \
  }                                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS) sum_squares_##T(const T* x, float* parts, long long size) { \
    sum_part<T, true>(x, parts, size);                                                                            \
  }

SUM(f32)
SUM(f16)
SUM(bf16)
