// The best few of many scores, in registers and without branches: scores become keys that carry their column, groups of
// eight keys are sorted by a network and merged into a sorted list.
#pragma once
#include <cstdint>

// A key: a score whose low bits give way to its column, so that of equal scores the lower column is the greater key. `mask`
// is 2^b - 1, at least the highest column.
__device__ __forceinline__ float key_of(float score, int column, int mask) {
  const int bits = __float_as_int(score);
  return __int_as_float((bits & ~mask) | ((column ^ ~(bits >> 31)) & mask));
}
__device__ __forceinline__ int column_of(float key, int mask) {
  const int bits = __float_as_int(key);
  return (bits ^ ~(bits >> 31)) & mask;
}

// Puts the greater of two keys first.
__device__ __forceinline__ void order(float& first, float& second) {
  const float greater = fmaxf(first, second);
  second = fminf(first, second);
  first = greater;
}

// Sorts eight keys, greatest first: the network of 19 comparisons.
__device__ __forceinline__ void sort_8(float (&x)[8]) {
  order(x[0], x[1]), order(x[2], x[3]), order(x[4], x[5]), order(x[6], x[7]);
  order(x[0], x[2]), order(x[1], x[3]), order(x[4], x[6]), order(x[5], x[7]);
  order(x[1], x[2]), order(x[5], x[6]), order(x[0], x[4]), order(x[3], x[7]);
  order(x[1], x[5]), order(x[2], x[6]);
  order(x[1], x[4]), order(x[3], x[6]);
  order(x[2], x[4]), order(x[3], x[5]);
  order(x[3], x[4]);
}

// Sorts a list that rises, then falls (or falls, then rises), greatest first.
template <int L>
__device__ __forceinline__ void sort_bitonic(float (&list)[L]) {
#pragma unroll
  for (int step = L / 2; step > 0; step /= 2) {
#pragma unroll
    for (int i = 0; i < L; i++) {
      if ((i & step) == 0) order(list[i], list[i + step]);
    }
  }
}

// Takes eight sorted keys into the sorted list of the L greatest.
template <int L>
__device__ __forceinline__ void merge_8(float (&list)[L], const float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i++) list[L - 8 + i] = fmaxf(list[L - 8 + i], x[7 - i]);
  sort_bitonic(list);
}

// Merges the sorted lists of two rows that the four lanes of a quad have: the even lanes get the first row's L greatest keys,
// the odd ones the second's.
template <int L>
__device__ __forceinline__ void merge_quad(float (&merged)[L], const float (&first)[L], const float (&second)[L]) {
  const bool odd = threadIdx.x & 1;
#pragma unroll
  for (int i = 0; i < L; i++) {
    const float other = __shfl_xor_sync(~0u, odd ? first[L - 1 - i] : second[L - 1 - i], 1);
    merged[i] = fmaxf(odd ? second[i] : first[i], other);
  }
  sort_bitonic(merged);
  float others[L];
#pragma unroll
  for (int i = 0; i < L; i++) others[i] = __shfl_xor_sync(~0u, merged[L - 1 - i], 2);
#pragma unroll
  for (int i = 0; i < L; i++) merged[i] = fmaxf(merged[i], others[i]);
  sort_bitonic(merged);
}
