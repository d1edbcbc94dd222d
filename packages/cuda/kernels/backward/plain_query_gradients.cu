// The gradient of queries, dq = scale Σ_j ds_j k_j over the keys that a query sees, on the float32 units: any dtype, head
// dimension and block size; dense, in a window, or routed. Gives D = dOut·out to the kernel for keys.
// A warp takes one query of one head.
#include "backward/row_gradients.cuh"
#include "common/range.cuh"
#include "common/shared.cuh"

// d_out, q, out, dq: [T, H, d]. k, v: [Tk, Hkv, d]. lse, deltas: [T, H]. indices: [T, H, slots]; null: a query sees all keys, or
// when causal those from position − window + 1 to its position. Dynamic shared memory: two float32 rows a warp.
// Grid: (ranges · tiles of the longest range, H, slabs); a tile is as many queries as the CTA has warps.
template <typename T, int V>
__device__ __forceinline__ void plain_query_gradients(const T* __restrict__ d_out, const T* __restrict__ q,
                                                      const T* __restrict__ k, const T* __restrict__ v,
                                                      const T* __restrict__ out, const float* lse,
                                                      const int* __restrict__ indices, const Range* ranges, T* dq,
                                                      float* deltas, int heads, int kv_heads, int head_dim,
                                                      int block_size, int slots, int causal, int window, float scale,
                                                      int tiles) {
  const Range range = ranges[blockIdx.x / tiles];
  const int query = blockIdx.x % tiles * (blockDim.x / WARP) + warp_id();
  if (query >= range.queries) return;
  const int head = blockIdx.y, slab = blockIdx.z;
  const int position = range.first_position + query;
  const int limit = causal ? min(range.keys, position + 1) : range.keys;
  const long long row = static_cast<long long>(range.query_begin + query) * heads + head;
  const long long step = static_cast<long long>(kv_heads) * head_dim;
  const long long first_key = range.key_begin * step + head / (heads / kv_heads) * head_dim;

  OwnRow own(reinterpret_cast<float*>(sharedMemory), head_dim);
  own.bring(q + row * head_dim, d_out + row * head_dim, head_dim);
  float delta = 0.0f;
  for (int c = lane_id(); c < head_dim; c += WARP) delta += own.second[c] * to_float(out[row * head_dim + c]);
  delta = warp_sum(delta);
  if (slab == 0 && lane_id() == 0) deltas[row] = delta;
  const float row_lse = lse[row];

  RowSum<T, V> sum;
  for (int slot = 0; slot < slots; slot++) {
    int begin = causal ? max(0, position - window + 1) : 0, count = limit - begin;
    if (indices != nullptr) {
      const int block = indices[row * slots + slot];
      begin = max(0, block) * block_size;
      count = block < 0 ? 0 : min(block_size, limit - begin);
    }
    for (int i = row_group(); i - row_group() < count; i += ROW_GROUPS) {
      const bool there = i < count;
      const long long at = first_key + (begin + i) * step;
      const Weights weights(own.products<T, V>(k + at, v + at, there, head_dim), scale, row_lse, delta);
      if (there) sum.add(weights.ds, k + at, head_dim, slab);
    }
  }
  sum.finish(dq + row * head_dim, scale, head_dim, slab);
}

#define PLAIN_QUERY_GRADIENTS(SUFFIX, T, V)                                                                          \
  extern "C" __global__ void __launch_bounds__(MOST_WARPS* WARP, 4) plain_query_gradients_##SUFFIX(                     \
      const T* d_out, const T* q, const T* k, const T* v, const T* out, const float* lse, const int* indices,        \
      const Range* ranges, T* dq, float* deltas, int heads, int kv_heads, int head_dim, int block_size, int slots,   \
      int causal, int window, float scale, int tiles) {                                                              \
    plain_query_gradients<T, V>(d_out, q, k, v, out, lse, indices, ranges, dq, deltas, heads, kv_heads, head_dim,    \
                                block_size, slots, causal, window, scale, tiles);                                    \
  }

// Heads of a multiple of 16 bytes, and any heads.
PLAIN_QUERY_GRADIENTS(f32, f32, 4)
PLAIN_QUERY_GRADIENTS(f16, f16, 8)
PLAIN_QUERY_GRADIENTS(bf16, bf16, 8)
PLAIN_QUERY_GRADIENTS(f32_scalar, f32, 1)
PLAIN_QUERY_GRADIENTS(f16_scalar, f16, 1)
PLAIN_QUERY_GRADIENTS(bf16_scalar, bf16, 1)
