// Sums of the columns of a float32 matrix, each in a fixed order of its rows: the last step of gradients that are sums over
// tokens.
#include "common/elements.cuh"
#include "common/warp.cuh"

constexpr int THREADS = 128;
constexpr int TALL_THREADS = 1024;

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

// The same for many rows: the threads of a CTA share 32 columns, each takes every 32nd row of one.
// Grid: (columns / 32).
template <typename T>
__device__ __forceinline__ void tall_column_sums(const float* __restrict__ x, T* out, int rows, int columns) {
  __shared__ float sums[TALL_THREADS / WARP][WARP];
  const int column = blockIdx.x * WARP + lane_id();
  float sum = 0.0f;
  if (column < columns) {
#pragma unroll 8
    for (int row = warp_id(); row < rows; row += TALL_THREADS / WARP) {
      sum += x[static_cast<long long>(row) * columns + column];
    }
  }
  sums[warp_id()][lane_id()] = sum;
  __syncthreads();
  if (warp_id() > 0 || column >= columns) return;
  for (int warp = 1; warp < TALL_THREADS / WARP; warp++) sum += sums[warp][lane_id()];
  out[column] = from_float<T>(sum);
}

#define COLUMN_SUMS(T)                                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                        \
      column_sums_##T(const float* x, T* out, int rows, int columns) {                                         \
    column_sums<T>(x, out, rows, columns);                                                                     \
  }                                                                                                            \
  extern "C" __global__ void __launch_bounds__(TALL_THREADS)                                                   \
      tall_column_sums_##T(const float* x, T* out, int rows, int columns) {                                    \
    tall_column_sums<T>(x, out, rows, columns);                                                                \
  }

COLUMN_SUMS(f32)
COLUMN_SUMS(f16)
COLUMN_SUMS(bf16)
