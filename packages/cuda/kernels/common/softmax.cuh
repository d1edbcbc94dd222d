// Softmax in base 2: scores are scaled by log2(e), so that exp2 is all there is to compute.
#pragma once
#include <cmath>

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// What exponents are taken relative to. Of scores that are all −Infinity the maximum is too, and −Infinity −
// (−Infinity) must not make a NaN: they have no weight, which 0 gives.
__device__ __forceinline__ float shift_of(float max) { return max == -INFINITY ? 0.0f : max; }

// log2 of Σ 2^score from the maximum and Σ 2^(score − shift_of(max)); −Infinity of nothing, NaN of a NaN.
__device__ __forceinline__ float log_sum(float max, float sum) {
  return sum == 0.0f ? -INFINITY : shift_of(max) + log2f(sum);
}

// What sums are multiplied by at the end: a row without any key is zero.
__device__ __forceinline__ float inverse_sum(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }
