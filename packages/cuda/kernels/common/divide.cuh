// Division by a number that stays the same, as a multiplication.
#pragma once
#include <cstdint>

__device__ __forceinline__ uint32_t inverse_of(int divisor) { return 0xffffffffu / divisor; }

// x / divisor, for x from 0 on. The product is too small by at most 1: the inverse by less than 1 of 2^32 / divisor.
__device__ __forceinline__ int divide(int x, int divisor, uint32_t inverse) {
  const int quotient = __umulhi(x, inverse);
  return quotient + (x - quotient * divisor >= divisor);
}
