// One step of AdamW (arXiv 1711.05101) over all parameters, in place. With ĝ = g min(1, clip / ‖g‖), ‖g‖ over all gradients:
// m ← β₁m + (1 − β₁)ĝ, v ← β₂v + (1 − β₂)ĝ², p ← p − η (m̂ / (sqrt(v̂) + ε) + λp), m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ).
// Three launches: sums of squares, their norm, the step. Nothing is read by the host, and nothing changes when ‖g‖ is not finite.
#include <cmath>

#include "nn/cta_sum.cuh"
#include "nn/group.cuh"

constexpr int THREADS = 256;
constexpr int NORM_THREADS = 1024;
constexpr int SHARE = 16384;  // elements of a parameter that a CTA takes

// A parameter, float32 but for its gradient. Its CTAs are those from `first_cta` on.
struct Parameter {
  float* value;
  const void* gradient;
  float* m;
  float* v;
  long long size;
  float weight_decay;
  int first_cta;
  int gradient_type;  // 0 f32, 1 f16, 2 bf16
};

// What is one minus a β, or its logarithm, comes from the host, where it has not lost its digits.
struct AdamW {
  float beta1, rest1, log_beta1;  // β₁, 1 − β₁, ln β₁
  float beta2, rest2, log_beta2;
  float epsilon;
  float clip_norm;
};

// The parameter that this CTA is to take elements of. Every thread of the CTA calls it.
__device__ __forceinline__ Parameter parameter_of_cta(const Parameter* parameters, int count) {
  __shared__ int found;
  const int cta = blockIdx.x;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    const int end = i + 1 < count ? parameters[i + 1].first_cta : static_cast<int>(gridDim.x);
    if (parameters[i].first_cta <= cta && cta < end) found = i;
  }
  __syncthreads();
  return parameters[found];
}

// The elements of a gradient from `at` on, `left` at most.
__device__ __forceinline__ void load_gradient(float (&g)[GROUP], const Parameter& of, long long at, long long left) {
  if (of.gradient_type == 0) {
    load_group(g, static_cast<const f32*>(of.gradient) + at, left);
  } else if (of.gradient_type == 1) {
    load_group(g, static_cast<const f16*>(of.gradient) + at, left);
  } else {
    load_group(g, static_cast<const bf16*>(of.gradient) + at, left);
  }
}

// parts: [gridDim.x]. Grid: (shares of all parameters).
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw_squares(const Parameter* parameters, int count, float* parts) {
  const Parameter mine = parameter_of_cta(parameters, count);
  const long long begin = static_cast<long long>(blockIdx.x - mine.first_cta) * SHARE;
  const long long end = min(mine.size, begin + SHARE);
  float sum[GROUP] = {};
  for (long long at = begin + threadIdx.x * GROUP; at < end; at += THREADS * GROUP) {
    float g[GROUP];
    load_gradient(g, mine, at, end - at);
#pragma unroll
    for (int i = 0; i < GROUP; i++) sum[i] += g[i] * g[i];
  }
#pragma unroll
  for (int i = 1; i < GROUP; i++) sum[0] += sum[i];
  const float total = cta_sum<THREADS>(sum[0]);
  if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

// One CTA. A norm that was not finite before stays.
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    adamw_norm(const float* parts, int count, float* gradient_norm) {
  float sum = 0.0f;
  for (int i = threadIdx.x; i < count; i += NORM_THREADS) sum += parts[i];
  const float total = cta_sum<NORM_THREADS>(sum);
  if (threadIdx.x == 0 && isfinite(*gradient_norm)) *gradient_norm = sqrtf(total);
}

// schedule: t and η. Grid: (shares of all parameters).
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    adamw(const Parameter* parameters, int count, const float* schedule, const float* gradient_norm, AdamW step) {
  const float norm = *gradient_norm;
  if (!isfinite(norm)) return;
  const Parameter mine = parameter_of_cta(parameters, count);
  const float scale = norm > step.clip_norm ? step.clip_norm / norm : 1.0f;
  const float learning_rate = schedule[1];
  const float correction1 = -1.0f / expm1f(schedule[0] * step.log_beta1);  // 1 / (1 − β₁ᵗ)
  const float correction2 = -1.0f / expm1f(schedule[0] * step.log_beta2);
  const long long begin = static_cast<long long>(blockIdx.x - mine.first_cta) * SHARE;
  const long long end = min(mine.size, begin + SHARE);
#pragma unroll 1
  for (long long at = begin + threadIdx.x * GROUP; at < end; at += THREADS * GROUP) {
    const long long left = end - at;
    float p[GROUP], g[GROUP], m[GROUP], v[GROUP];
    load_group(p, mine.value + at, left);
    load_gradient(g, mine, at, left);
    load_group(m, mine.m + at, left);
    load_group(v, mine.v + at, left);
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
      const float clipped = scale * g[i];
      m[i] = step.beta1 * m[i] + step.rest1 * clipped;
      v[i] = step.beta2 * v[i] + step.rest2 * clipped * clipped;
      const float direction = m[i] * correction1 / (sqrtf(v[i] * correction2) + step.epsilon);
      p[i] -= learning_rate * (direction + mine.weight_decay * p[i]);
    }
    store_group(mine.value + at, p, left);
    store_group(mine.m + at, m, left);
    store_group(mine.v + at, v, left);
  }
}
