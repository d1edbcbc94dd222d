// The sum of two tensors, element by element. A thread takes 8 elements.
#include "nn/group.cuh"

constexpr int THREADS = 256;

// Grid: (size / 8 / THREADS).
template <typename T>
__device__ __forceinline__ void add(const T* __restrict__ a, const T* __restrict__ b, T* out, long long size) {
  const long long at = (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x) * GROUP;
  if (at >= size) return;
  float x[GROUP], y[GROUP];
  load_group(x, a + at, size - at);
  load_group(y, b + at, size - at);
#pragma unroll
  for (int i = 0; i < GROUP; i++) x[i] += y[i];
  store_group(out + at, x, size - at);
}

#define ADD(T)                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS) add_##T(const T* a, const T* b, T* out, long long size) { \
    add<T>(a, b, out, size);                                                                                 \
  }

ADD(f32)
ADD(f16)
ADD(bf16)
