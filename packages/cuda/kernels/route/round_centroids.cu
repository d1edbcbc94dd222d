// Stored centroids in the dtype of the queries and head-major, as tensor cores take them.
#include "common/elements.cuh"

constexpr int THREADS = 256;

// centroids: float32 [blocks, Hkv, d]. rounded: [Hkv, blocks, d]. Grid: (blocks · Hkv · d / THREADS).
template <typename T>
__device__ __forceinline__ void round_centroids(const float* __restrict__ centroids, T* rounded, int blocks,
                                                int kv_heads, int head_dim) {
  const long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
  const long long row = i / head_dim;
  if (row >= static_cast<long long>(blocks) * kv_heads) return;
  rounded[(row % kv_heads * blocks + row / kv_heads) * head_dim + i % head_dim] = from_float<T>(centroids[i]);
}

#define ROUND_CENTROIDS(NAME, T)                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                      \
      NAME(const float* centroids, T* rounded, int blocks, int kv_heads, int head_dim) {                     \
    round_centroids<T>(centroids, rounded, blocks, kv_heads, head_dim);                                      \
  }

ROUND_CENTROIDS(round_centroids_f16, f16)
ROUND_CENTROIDS(round_centroids_bf16, bf16)
