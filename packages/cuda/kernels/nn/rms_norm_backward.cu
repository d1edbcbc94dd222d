// Gradients of the root-mean-square normalization. With n_t = x_t / r_t and g_t = w ⊙ dOut_t:
// dx_t = (g_t − n_t mean_c(g_tc n_tc)) / r_t, dWeight = Σ_t dOut_t ⊙ n_t.
#include "nn/cta_sum.cuh"
#include "nn/group.cuh"

constexpr int THREADS = 128;

// dx, plus `addend` unless that is null, and 1 / r of each row for the other kernel. x, d_out, addend, dx: [T, channels].
// inverses: [T]. Grid: (T).
template <typename T>
__device__ __forceinline__ void rms_norm_backward(const T* __restrict__ d_out, const T* __restrict__ x,
                                                  const T* __restrict__ weight, const T* __restrict__ addend, T* dx,
                                                  float* inverses, int channels, float epsilon) {
  const bool aligned = rows_aligned<T>(channels);
  const long long row = static_cast<long long>(blockIdx.x) * channels;
  float squares = 0.0f, products = 0.0f;
  for (int column = threadIdx.x * GROUP; column < channels; column += THREADS * GROUP) {
    float value[GROUP], g[GROUP], w[GROUP];
    load_group(value, x + row + column, channels - column, aligned);
    load_group(g, d_out + row + column, channels - column, aligned);
    load_group(w, weight + column, channels - column, aligned);
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
      squares += value[i] * value[i];
      products += w[i] * g[i] * value[i];
    }
  }
  const float inverse = 1.0f / sqrtf(cta_sum<THREADS>(squares) / channels + epsilon);
  const float mean = cta_sum<THREADS>(products) * inverse / channels;
  if (threadIdx.x == 0) inverses[blockIdx.x] = inverse;
  for (int column = threadIdx.x * GROUP; column < channels; column += THREADS * GROUP) {
    float value[GROUP], g[GROUP], w[GROUP];
    load_group(value, x + row + column, channels - column, aligned);
    load_group(g, d_out + row + column, channels - column, aligned);
    load_group(w, weight + column, channels - column, aligned);
#pragma unroll
    for (int i = 0; i < GROUP; i++) value[i] = (w[i] * g[i] - value[i] * inverse * mean) * inverse;
    if (addend != nullptr) {
      load_group(g, addend + row + column, channels - column, aligned);
#pragma unroll
      for (int i = 0; i < GROUP; i++) value[i] += g[i];
    }
    store_group(dx + row + column, value, channels - column, aligned);
  }
}

// Each chunk of rows' part of dWeight: lanes lie along the columns, warps take rows in turn. parts: float32
// [chunks, channels].
// Grid: (channels / 256, chunks).
template <typename T>
__device__ __forceinline__ void rms_norm_weight_parts(const T* __restrict__ d_out, const T* __restrict__ x,
                                                      const float* inverses, float* parts, int tokens, int channels,
                                                      int chunk) {
  __shared__ float sums[THREADS / WARP][WARP * GROUP];
  const bool aligned = rows_aligned<T>(channels);
  const int first_column = blockIdx.x * WARP * GROUP, column = first_column + lane_id() * GROUP;
  const int end = min(tokens, static_cast<int>(blockIdx.y + 1) * chunk);
  float sum[GROUP] = {};
  if (column < channels) {
    for (int token = blockIdx.y * chunk + warp_id(); token < end; token += THREADS / WARP) {
      const long long at = static_cast<long long>(token) * channels + column;
      const float inverse = inverses[token];
      float value[GROUP], g[GROUP];
      load_group(value, x + at, channels - column, aligned);
      load_group(g, d_out + at, channels - column, aligned);
#pragma unroll
      for (int i = 0; i < GROUP; i++) sum[i] += g[i] * (value[i] * inverse);
    }
  }
#pragma unroll
  for (int i = 0; i < GROUP; i++) sums[warp_id()][lane_id() * GROUP + i] = sum[i];
  __syncthreads();
  for (int i = threadIdx.x; i < WARP * GROUP && first_column + i < channels; i += THREADS) {
    float total = 0.0f;
    for (int warp = 0; warp < THREADS / WARP; warp++) total += sums[warp][i];
    parts[static_cast<long long>(blockIdx.y) * channels + first_column + i] = total;
  }
}

#define RMS_NORM_BACKWARD(T)                                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
      rms_norm_backward_##T(const T* d_out, const T* x, const T* weight, const T* addend, T* dx, float* inverses,    \
                            int channels, float epsilon) {                                                           \
    rms_norm_backward<T>(d_out, x, weight, addend, dx, inverses, channels, epsilon);                                 \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
      rms_norm_weight_parts_##T(const T* d_out, const T* x, const float* inverses, float* parts, int tokens,         \
                                int channels, int chunk) {                                                           \
    rms_norm_weight_parts<T>(d_out, x, inverses, parts, tokens, channels, chunk);                                    \
  }

RMS_NORM_BACKWARD(f32)
RMS_NORM_BACKWARD(f16)
RMS_NORM_BACKWARD(bf16)
