// The rows of a table: out_t = table[indices_t], zeros where an index is no row. A thread takes 8 columns of a token.
#include "nn/group.cuh"

constexpr int THREADS = 128;

// table: [rows, channels]. indices: [T]. out: [T, channels]. Grid: (T, channels / 8 / THREADS).
template <typename T>
__device__ __forceinline__ void embedding(const T* __restrict__ table, const int* indices, T* out, int rows,
                                          int channels) {
  const int column = (blockIdx.y * THREADS + threadIdx.x) * GROUP;
  if (column >= channels) return;
  const bool aligned = rows_aligned<T>(channels);
  const int index = indices[blockIdx.x];
  float x[GROUP] = {};
  if (index >= 0 && index < rows) {
    load_group(x, table + static_cast<long long>(index) * channels + column, channels - column, aligned);
  }
  store_group(out + static_cast<long long>(blockIdx.x) * channels + column, x, channels - column, aligned);
}

#define EMBEDDING(T)                                                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                 \
      embedding_##T(const T* table, const int* indices, T* out, int rows, int channels) {               \
    embedding<T>(table, indices, out, rows, channels);                                                  \
  }

EMBEDDING(f32)
EMBEDDING(f16)
EMBEDDING(bf16)
