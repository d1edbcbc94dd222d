// The gate of a SwiGLU layer (arXiv 2002.05202): out = SiLU(gate) ⊙ up. A thread takes 8 elements.
#include "nn/group.cuh"

constexpr int THREADS = 256;

// Grid: (size / 8 / THREADS).
template <typename T>
__device__ __forceinline__ void swiglu(const T* __restrict__ gate, const T* __restrict__ up, T* out, long long size) {
  const long long at = (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x) * GROUP;
  if (at >= size) return;
  float x[GROUP], y[GROUP];
  load_group(x, gate + at, size - at);
  load_group(y, up + at, size - at);
#pragma unroll
  for (int i = 0; i < GROUP; i++) x[i] = x[i] / (1.0f + expf(-x[i])) * y[i];
  store_group(out + at, x, size - at);
}

#define SWIGLU(T)                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS)                       \
      swiglu_##T(const T* gate, const T* up, T* out, long long size) {        \
    swiglu<T>(gate, up, out, size);                                           \
  }

SWIGLU(f32)
SWIGLU(f16)
SWIGLU(bf16)
