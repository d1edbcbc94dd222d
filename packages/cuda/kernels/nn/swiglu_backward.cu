// Gradients of out = SiLU(gate) ⊙ up: dGate = dOut ⊙ up ⊙ σ(gate)(1 + gate(1 − σ(gate))), dUp = dOut ⊙ SiLU(gate).
// A thread takes 8 elements.
#include "nn/group.cuh"

constexpr int THREADS = 256;

// Grid: (size / 8 / THREADS).
template <typename T>
__device__ __forceinline__ void swiglu_backward(const T* __restrict__ d_out, const T* __restrict__ gate,
                                                const T* __restrict__ up, T* d_gate, T* d_up, long long size) {
  const long long at = (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x) * GROUP;
  if (at >= size) return;
  float g[GROUP], x[GROUP], y[GROUP];
  load_group(g, d_out + at, size - at);
  load_group(x, gate + at, size - at);
  load_group(y, up + at, size - at);
#pragma unroll
  for (int i = 0; i < GROUP; i++) {
    const float sigmoid = 1.0f / (1.0f + expf(-x[i]));
    const float derivative = sigmoid * (1.0f + x[i] * (1.0f - sigmoid));
    y[i] *= g[i] * derivative;
    x[i] *= g[i] * sigmoid;
  }
  store_group(d_gate + at, y, size - at);
  store_group(d_up + at, x, size - at);
}

#define SWIGLU_BACKWARD(T)                                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
      swiglu_backward_##T(const T* d_out, const T* gate, const T* up, T* d_gate, T* d_up, long long size) {          \
    swiglu_backward<T>(d_out, gate, up, d_gate, d_up, size);                                                         \
  }

SWIGLU_BACKWARD(f32)
SWIGLU_BACKWARD(f16)
SWIGLU_BACKWARD(bf16)
