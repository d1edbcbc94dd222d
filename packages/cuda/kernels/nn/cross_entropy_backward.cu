// Gradient of the softmax cross-entropy: dLogits_tv = dLoss_t (exp(logits_tv − lse_t) − [v = y_t]), zero where the target is
// no column. A thread takes 8 columns of a row.
#include "nn/group.cuh"

constexpr int THREADS = 256;

// logits, d_logits: [T, columns], perhaps the same. d_loss, targets, lse: [T]. Grid: (T, columns / 8 / THREADS).
template <typename T>
__device__ __forceinline__ void cross_entropy_backward(const float* d_loss, const T* logits,
                                                       const int* targets, const float* lse, T* d_logits, int columns) {
  const int column = (blockIdx.y * THREADS + threadIdx.x) * GROUP;
  if (column >= columns) return;
  const bool aligned = rows_aligned<T>(columns);
  const long long at = static_cast<long long>(blockIdx.x) * columns + column;
  const int target = targets[blockIdx.x];
  float x[GROUP] = {};
  if (target >= 0 && target < columns) {
    const float factor = d_loss[blockIdx.x], row_lse = lse[blockIdx.x];
    load_group(x, logits + at, columns - column, aligned);
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
      x[i] = factor * (expf(x[i] - row_lse) - (column + i == target ? 1.0f : 0.0f));
    }
  }
  store_group(d_logits + at, x, columns - column, aligned);
}

#define CROSS_ENTROPY_BACKWARD(T)                                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
      cross_entropy_backward_##T(const float* d_loss, const T* logits, const int* targets, const float* lse,       \
                                 T* d_logits, int columns) {                                                       \
    cross_entropy_backward<T>(d_loss, logits, targets, lse, d_logits, columns);                                    \
  }

CROSS_ENTROPY_BACKWARD(f32)
CROSS_ENTROPY_BACKWARD(f16)
CROSS_ENTROPY_BACKWARD(bf16)
