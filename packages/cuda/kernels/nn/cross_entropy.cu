// Softmax cross-entropy: loss_t = lse_t − logits_{t, y_t}, lse_t = log Σ_v exp(logits_tv). A CTA takes a row, each of its
// threads with a running maximum and sum of its own.
#include <cmath>

#include "common/softmax.cuh"
#include "nn/cta_sum.cuh"
#include "nn/group.cuh"

constexpr int THREADS = 256;

// The largest of all threads' values. Every thread of the CTA calls it.
__device__ __forceinline__ float cta_max(float x) {
  __shared__ float maxima[THREADS / WARP];
  x = warp_max(x);
  if (lane_id() == 0) maxima[warp_id()] = x;
  __syncthreads();
  for (int warp = 0; warp < THREADS / WARP; warp++) x = fmaxf(x, maxima[warp]);
  return x;
}

// logits: [T, columns]. targets: [T]. loss, lse: [T]. Grid: (T).
template <typename T>
__device__ __forceinline__ void cross_entropy(const T* __restrict__ logits, const int* targets, float* loss, float* lse,
                                              int columns) {
  const bool aligned = rows_aligned<T>(columns);
  const T* row = logits + static_cast<long long>(blockIdx.x) * columns;
  float max = -INFINITY, sum = 0.0f;
  for (int column = threadIdx.x * GROUP; column < columns; column += THREADS * GROUP) {
    const int count = min(GROUP, columns - column);
    float x[GROUP];
    load_group(x, row + column, count, aligned);
    float highest = max;
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
      if (i < count) highest = fmaxf(highest, x[i]);
    }
    sum *= expf(max - shift_of(highest));
    max = highest;
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
      if (i < count) sum += expf(x[i] - shift_of(max));
    }
  }
  const float highest = cta_max(max);
  const float total = cta_sum<THREADS>(sum * expf(max - shift_of(highest)));
  if (threadIdx.x != 0) return;
  const float row_lse = shift_of(highest) + logf(total);
  const int target = targets[blockIdx.x];
  lse[blockIdx.x] = row_lse;
  loss[blockIdx.x] = target >= 0 && target < columns ? row_lse - to_float(row[target]) : 0.0f;
}

#define CROSS_ENTROPY(T)                                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                   \
      cross_entropy_##T(const T* logits, const int* targets, float* loss, float* lse, int columns) {      \
    cross_entropy<T>(logits, targets, loss, lse, columns);                                                \
  }

CROSS_ENTROPY(f32)
CROSS_ENTROPY(f16)
CROSS_ENTROPY(bf16)
