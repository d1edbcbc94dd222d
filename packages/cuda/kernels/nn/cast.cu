// A tensor in another dtype, rounded to nearest even. A thread takes 8 elements.
#include "nn/group.cuh"

constexpr int THREADS = 256;

// Grid: (size / 8 / THREADS).
template <typename From, typename To>
__device__ __forceinline__ void cast(const From* __restrict__ x, To* out, long long size) {
  const long long at = (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x) * GROUP;
  if (at >= size) return;
  float group[GROUP];
  load_group(group, x + at, size - at);
  store_group(out + at, group, size - at);
}

#define CAST(From, To)                                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS)                                   \
      cast_##From##_##To(const From* x, To* out, long long size) {                        \
    cast<From, To>(x, out, size);                                                         \
  }

CAST(f32, f32)
CAST(f32, f16)
CAST(f32, bf16)
CAST(f16, f32)
CAST(f16, f16)
CAST(f16, bf16)
CAST(bf16, f32)
CAST(bf16, f16)
CAST(bf16, bf16)
