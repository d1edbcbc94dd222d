// Sums of the columns of a float32 matrix, each in the order of its rows: the last step of gradients that are sums over
// tokens.
#include "common/elements.cuh"

constexpr int THREADS = 128;

// x: [rows, columns]. out: [columns]. Grid: (columns / THREADS).
template <typename T>
__device__ __forceinline__ void column_sums(const float* __restrict__ x, T* out, int rows, int columns) {
  const int column = blockIdx.x * THREADS + threadIdx.x;
  if (column >= columns) return;
  float sum = 0.0f;
#pragma unroll 8
  for (int row = 0; row < rows; row++) sum += x[static_cast<long long>(row) * columns + column];
  out[column] = from_float<T>(sum);
}

#define COLUMN_SUMS(T)                                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                        \
      column_sums_##T(const float* x, T* out, int rows, int columns) {                                         \
    column_sums<T>(x, out, rows, columns);                                                                     \
  }

COLUMN_SUMS(f32)
COLUMN_SUMS(f16)
COLUMN_SUMS(bf16)
