// Gradient of a table's rows: dTable_v = Σ_{t: indices_t = v} dOut_t, in the order of the tokens. The tokens of each row
// are listed by route/invert.ts: an index is a block that a token chose.
#include "nn/group.cuh"

constexpr int THREADS = 128;
constexpr int AT_ONCE = 4;  // loads on their way

// Indices that are no rows become −1. Grid: (T / THREADS).
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_rows(const int* indices, int* checked, int tokens, int rows) {
  const int token = blockIdx.x * THREADS + threadIdx.x;
  if (token >= tokens) return;
  const int index = indices[token];
  checked[token] = index < rows ? max(index, -1) : -1;
}

// d_out: [T, channels]. counts, starts: [rows], each row's list in `tokens`. d_table: [rows, channels].
// Grid: (rows, channels / 8 / THREADS).
template <typename T>
__device__ __forceinline__ void embedding_backward(const T* __restrict__ d_out, const int* counts, const int* starts,
                                                   const int* __restrict__ tokens, T* d_table, int channels) {
  const int row = blockIdx.x, column = (blockIdx.y * THREADS + threadIdx.x) * GROUP;
  if (column >= channels) return;
  const int count = counts[row];
  const int* list = tokens + starts[row];
  const bool aligned = rows_aligned<T>(channels);
  float sum[GROUP] = {};
  for (int begin = 0; begin < count; begin += AT_ONCE) {
    float x[AT_ONCE][GROUP];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const long long token = list[min(begin + i, count - 1)];
      load_group(x[i], d_out + token * channels + column, channels - column, aligned);
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      if (begin + i >= count) break;
#pragma unroll
      for (int c = 0; c < GROUP; c++) sum[c] += x[i][c];
    }
  }
  store_group(d_table + static_cast<long long>(row) * channels + column, sum, channels - column, aligned);
}

#define EMBEDDING_BACKWARD(T)                                                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
      embedding_backward_##T(const T* d_out, const int* counts, const int* starts, const int* tokens, T* d_table,  \
                             int channels) {                                                                       \
    embedding_backward<T>(d_out, counts, starts, tokens, d_table, channels);                                       \
  }

EMBEDDING_BACKWARD(f32)
EMBEDDING_BACKWARD(f16)
EMBEDDING_BACKWARD(bf16)
