// Scores as integers.
#pragma once
#include <cmath>
#include <cstdint>

// Comes before the rank of every score.
constexpr uint32_t NO_RANK = 0;

// An integer that orders as the score does. NaN counts as −Infinity; −0 as 0, since equal scores must tie.
__device__ __forceinline__ uint32_t rank_of(float score) {
  const uint32_t bits = __float_as_uint(isnan(score) ? -INFINITY : score + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
