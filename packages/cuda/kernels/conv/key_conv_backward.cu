// Gradients of the key convolution (arXiv 2511.11571, section 3 and appendix). With s_t = Σ_l w_l ⊙ k_{t−l} and
// g_t = dOut_t ⊙ SiLU'(s_t): dk_t = dOut_t + Σ_l w_l ⊙ g_{t+l}, dw_l = Σ_t g_t ⊙ k_{t−l}, each sequence by itself.
//
// Three kernels, one after the other, over some columns of the rows of Hkv·d channels: g, then dk, then dw in chunks of tokens.
// Tensors are given from their first column taken on; a thread takes 8 columns at a time.
#include "common/range.cuh"
#include "common/warp.cuh"
#include "nn/group.cuh"

constexpr int THREADS = 128;

// Columns taken of rows of `channels`, and where sequences begin.
struct Layout {
  const int* cu_seqlens;  // [batch + 1]
  int batch;
  int tokens;
  int channels;
  int columns;
  int width;
  int chunk;  // tokens that are summed by themselves first

  __device__ __forceinline__ long long row(int token) const { return static_cast<long long>(token) * channels; }
};

// The token and the column of a thread, of which there is one for each token and 8 columns.
struct Item {
  int token;
  int column;

  __device__ __forceinline__ explicit Item(int columns) {
    const int groups = columns / GROUP + (columns % GROUP != 0);
    const long long item = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
    token = static_cast<int>(min(item / groups, 0x7fffffffLL));
    column = static_cast<int>(item % groups) * GROUP;
  }
};

// gradient: g, float32 [T, columns]. Grid: (T · columns / 8 / THREADS).
template <typename T>
__device__ __forceinline__ void key_conv_gradient(const T* __restrict__ d_out, const T* __restrict__ keys,
                                                  const T* __restrict__ weights, float* gradient, const Layout& layout) {
  const Item item(layout.columns);
  if (item.token >= layout.tokens) return;
  const bool aligned = rows_aligned<T>(layout.channels);
  const int count = layout.columns - item.column;
  const int begin = layout.cu_seqlens[sequence_of(layout.cu_seqlens, layout.batch, item.token)];
  float sum[GROUP] = {};
  for (int lag = 0; lag < min(layout.width, item.token - begin + 1); lag++) {
    float w[GROUP], x[GROUP];
    load_group(w, weights + layout.row(lag) + item.column, count, aligned);
    load_group(x, keys + layout.row(item.token - lag) + item.column, count, aligned);
#pragma unroll
    for (int i = 0; i < GROUP; i++) sum[i] += w[i] * x[i];
  }
  float g[GROUP];
  load_group(g, d_out + layout.row(item.token) + item.column, count, aligned);
#pragma unroll
  for (int i = 0; i < GROUP; i++) {
    const float sigmoid = 1.0f / (1.0f + expf(-sum[i]));
    g[i] *= sigmoid * (1.0f + sum[i] * (1.0f - sigmoid));
  }
  store_group(gradient + static_cast<long long>(item.token) * layout.columns + item.column, g, count,
              rows_aligned<float>(layout.columns));
}

// Grid: (T · columns / 8 / THREADS).
template <typename T>
__device__ __forceinline__ void key_conv_backward(const T* __restrict__ d_out, const T* __restrict__ weights,
                                                  const float* __restrict__ gradient, T* dk, const Layout& layout) {
  const Item item(layout.columns);
  if (item.token >= layout.tokens) return;
  const bool aligned = rows_aligned<T>(layout.channels), gradient_aligned = rows_aligned<float>(layout.columns);
  const int count = layout.columns - item.column;
  const int end = layout.cu_seqlens[sequence_of(layout.cu_seqlens, layout.batch, item.token) + 1];
  float sum[GROUP];
  load_group(sum, d_out + layout.row(item.token) + item.column, count, aligned);
  for (int lag = 0; lag < min(layout.width, end - item.token); lag++) {
    float w[GROUP], g[GROUP];
    load_group(w, weights + layout.row(lag) + item.column, count, aligned);
    load_group(g, gradient + static_cast<long long>(item.token + lag) * layout.columns + item.column, count,
               gradient_aligned);
#pragma unroll
    for (int i = 0; i < GROUP; i++) sum[i] += w[i] * g[i];
  }
  store_group(dk + layout.row(item.token) + item.column, sum, count, aligned);
}

// Each chunk of tokens' part of dw: lanes lie along the columns, warps take tokens in turn. parts: float32 [chunks, W, channels].
// Grid: (columns / 256, chunks, W at most).
template <typename T>
__device__ __forceinline__ void key_conv_weight_parts(const T* __restrict__ keys, const float* __restrict__ gradient,
                                                      float* parts, const Layout& layout) {
  __shared__ float sums[THREADS / WARP][WARP * GROUP];
  const bool aligned = rows_aligned<T>(layout.channels), gradient_aligned = rows_aligned<float>(layout.columns);
  const int first_column = blockIdx.x * WARP * GROUP, column = first_column + lane_id() * GROUP;
  const int count = layout.columns - column;
  const int first = blockIdx.y * layout.chunk, last = first + min(layout.tokens - first, layout.chunk);
  for (int lag = blockIdx.z; lag < layout.width; lag += gridDim.z) {
    float sum[GROUP] = {};
    for (int token = first + warp_id(); token < last && count > 0; token += THREADS / WARP) {
      const int begin = layout.cu_seqlens[sequence_of(layout.cu_seqlens, layout.batch, token)];
      if (token - begin < lag) continue;
      float x[GROUP], g[GROUP];
      load_group(x, keys + layout.row(token - lag) + column, count, aligned);
      load_group(g, gradient + static_cast<long long>(token) * layout.columns + column, count, gradient_aligned);
#pragma unroll
      for (int i = 0; i < GROUP; i++) sum[i] += g[i] * x[i];
    }
    __syncthreads();  // the sums of the lag before have been read
#pragma unroll
    for (int i = 0; i < GROUP; i++) sums[warp_id()][lane_id() * GROUP + i] = sum[i];
    __syncthreads();
    float* target = parts + (static_cast<long long>(blockIdx.y) * layout.width + lag) * layout.channels + first_column;
    for (int i = threadIdx.x; i < WARP * GROUP && first_column + i < layout.columns; i += THREADS) {
      float total = 0.0f;
      for (int warp = 0; warp < THREADS / WARP; warp++) total += sums[warp][i];
      target[i] = total;
    }
  }
}

#define KEY_CONV_BACKWARD(T)                                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
      key_conv_gradient_##T(const T* d_out, const T* keys, const T* weights, float* gradient, Layout layout) {       \
    key_conv_gradient<T>(d_out, keys, weights, gradient, layout);                                                    \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
      key_conv_backward_##T(const T* d_out, const T* weights, const float* gradient, T* dk, Layout layout) {         \
    key_conv_backward<T>(d_out, weights, gradient, dk, layout);                                                      \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
      key_conv_weight_parts_##T(const T* keys, const float* gradient, float* parts, Layout layout) {                 \
    key_conv_weight_parts<T>(keys, gradient, parts, layout);                                                         \
  }

KEY_CONV_BACKWARD(f32)
KEY_CONV_BACKWARD(f16)
KEY_CONV_BACKWARD(bf16)
