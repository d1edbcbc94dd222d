// Pairs of 2-byte elements in a word, as tensor cores take them.
#pragma once
#include "common/elements.cuh"
#include "common/warp.cuh"

// Two floats rounded, the first in the lower half.
template <typename T>
__device__ __forceinline__ uint32_t pack(float x, float y);
template <>
__device__ __forceinline__ uint32_t pack<bf16>(float x, float y) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t pack<f16>(float x, float y) {
  const __half2 pair = __floats2half2_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <typename T>
__device__ __forceinline__ void unpack_pair(float (&x)[2], uint32_t pair);
template <>
__device__ __forceinline__ void unpack_pair<bf16>(float (&x)[2], uint32_t pair) {
  x[0] = __uint_as_float(pair << 16);
  x[1] = __uint_as_float(pair & 0xffff0000u);
}
template <>
__device__ __forceinline__ void unpack_pair<f16>(float (&x)[2], uint32_t pair) {
  const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&pair));
  x[0] = both.x;
  x[1] = both.y;
}

// The lowest bit of the exponents of a pair.
template <typename T>
constexpr uint32_t EXPONENT_STEP = 0;
template <>
constexpr uint32_t EXPONENT_STEP<bf16> = 0x00800080;
template <>
constexpr uint32_t EXPONENT_STEP<f16> = 0x04000400;

// All ones in each half that is not finite, that is, whose exponent is all ones.
template <typename T>
__device__ __forceinline__ uint32_t non_finite_halves(uint32_t pair) {
  constexpr uint32_t exponents = 0x80008000 - EXPONENT_STEP<T>;
  const uint32_t carried = ((pair & exponents) + EXPONENT_STEP<T>) & 0x80008000;
  return (carried >> 15) * 0xffff;
}

// Four words of each lane of a quad, transposed: lane l's word u becomes lane u's word l.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = lane_id() & bit;
#pragma unroll
    for (int u = 0; u < 4; u++) {
      if (u & bit) continue;
      const uint32_t received = __shfl_xor_sync(ALL_LANES, upper ? w[u] : w[u | bit], bit);
      w[u] = upper ? received : w[u];
      w[u | bit] = upper ? w[u | bit] : received;
    }
  }
}
