// One step of AdamW (arXiv 1711.05101), in place. With g = gradient_scale · gradient:
// m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², p ← p − η (m̂ / (sqrt(v̂) + ε) + λp),
// m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ).
// A thread takes 8 elements.
#include "nn/group.cuh"

constexpr int THREADS = 256;

// What is one minus a β comes from the host, where it has not lost its digits.
struct AdamW {
  float gradient_scale;
  float beta1, rest1;  // β₁, 1 − β₁
  float beta2, rest2;
  float correction1, correction2;  // 1 / (1 − β₁ᵗ), 1 / (1 − β₂ᵗ)
  float learning_rate;
  float weight_decay;
  float epsilon;
};

// parameter, m, v: float32, changed. Grid: (size / 8 / THREADS).
template <typename T>
__device__ __forceinline__ void adamw(float* parameter, const T* __restrict__ gradient, float* first, float* second,
                                      long long size, const AdamW& step) {
  const long long at = (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x) * GROUP;
  if (at >= size) return;
  const long long count = size - at;
  float p[GROUP], g[GROUP], m[GROUP], v[GROUP];
  load_group(p, parameter + at, count);
  load_group(g, gradient + at, count);
  load_group(m, first + at, count);
  load_group(v, second + at, count);
#pragma unroll
  for (int i = 0; i < GROUP; i++) {
    const float scaled = step.gradient_scale * g[i];
    m[i] = step.beta1 * m[i] + step.rest1 * scaled;
    v[i] = step.beta2 * v[i] + step.rest2 * scaled * scaled;
    const float direction = m[i] * step.correction1 / (sqrtf(v[i] * step.correction2) + step.epsilon);
    p[i] -= step.learning_rate * (direction + step.weight_decay * p[i]);
  }
  store_group(parameter + at, p, count);
  store_group(first + at, m, count);
  store_group(second + at, v, count);
}

#define ADAMW(T)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                           \
      adamw_##T(float* parameter, const T* gradient, float* m, float* v, long long size, AdamW step) {            \
    adamw<T>(parameter, gradient, m, v, size, step);                                                              \
  }

ADAMW(f32)
ADAMW(f16)
ADAMW(bf16)
