// Root-mean-square normalization (arXiv 1910.07467): out_t = w ⊙ x_t / r_t, r_t = sqrt(mean_c x_tc² + ε). A CTA takes a row.
#include "nn/cta_sum.cuh"
#include "nn/group.cuh"

constexpr int THREADS = 128;

// x, out: [T, channels]. weight: [channels]. Grid: (T).
template <typename T>
__device__ __forceinline__ void rms_norm(const T* __restrict__ x, const T* __restrict__ weight, T* out, int channels,
                                         float epsilon) {
  const bool aligned = rows_aligned<T>(channels);
  const long long row = static_cast<long long>(blockIdx.x) * channels;
  float squares = 0.0f;
  for (int column = threadIdx.x * GROUP; column < channels; column += THREADS * GROUP) {
    float group[GROUP];
    load_group(group, x + row + column, channels - column, aligned);
#pragma unroll
    for (int i = 0; i < GROUP; i++) squares += group[i] * group[i];
  }
  const float inverse = 1.0f / sqrtf(cta_sum<THREADS>(squares) / channels + epsilon);
  for (int column = threadIdx.x * GROUP; column < channels; column += THREADS * GROUP) {
    float group[GROUP], w[GROUP];
    load_group(group, x + row + column, channels - column, aligned);
    load_group(w, weight + column, channels - column, aligned);
#pragma unroll
    for (int i = 0; i < GROUP; i++) group[i] = w[i] * (group[i] * inverse);
    store_group(out + row + column, group, channels - column, aligned);
  }
}

#define RMS_NORM(T)                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS)                                       \
      rms_norm_##T(const T* x, const T* weight, T* out, int channels, float epsilon) {        \
    rms_norm<T>(x, weight, out, channels, epsilon);                                           \
  }

RMS_NORM(f32)
RMS_NORM(f16)
RMS_NORM(bf16)
