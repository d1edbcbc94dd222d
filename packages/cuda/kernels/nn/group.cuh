// Groups of 8 elements: what a thread of an element-wise kernel takes at a time.
#pragma once
#include "common/elements.cuh"

constexpr int GROUP = 8;

// The first `count` elements of a group; the others become zeros. `aligned`: the group begins at a multiple of 16 bytes.
template <typename T>
__device__ __forceinline__ void load_group(float (&x)[GROUP], const T* source, long long count, bool aligned = true) {
  constexpr int V = PER_16_BYTES<T>;
  if (aligned && count >= GROUP) {
#pragma unroll
    for (int i = 0; i < GROUP; i += V) {
      float packet[V];
      unpack(packet, load<T, V>(source + i));
#pragma unroll
      for (int c = 0; c < V; c++) x[i + c] = packet[c];
    }
  } else {
#pragma unroll
    for (int i = 0; i < GROUP; i++) x[i] = i < count ? to_float(source[i]) : 0.0f;
  }
}

// Stores the first `count` elements.
template <typename T>
__device__ __forceinline__ void store_group(T* target, const float (&x)[GROUP], long long count, bool aligned = true) {
  constexpr int V = PER_16_BYTES<T>;
  if (aligned && count >= GROUP) {
#pragma unroll
    for (int i = 0; i < GROUP; i += V) {
      float packet[V];
#pragma unroll
      for (int c = 0; c < V; c++) packet[c] = x[i + c];
      store(target + i, packet);
    }
  } else {
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
      if (i < count) target[i] = from_float<T>(x[i]);
    }
  }
}

// Whether all rows of so many elements begin at multiples of 16 bytes.
template <typename T>
__device__ __forceinline__ bool rows_aligned(int row_elements) {
  return row_elements % PER_16_BYTES<T> == 0;
}
