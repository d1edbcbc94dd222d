// The gradients of keys and values, dk = scale Σ_i ds_i q_i and dv = Σ_i p_i dOut_i over the queries that see a key, on the
// float32 units: any dtype, head dimension and block size; dense, in a window, or routed.
// A warp takes one key of one key head, and the query heads that read it one after the other: so each sum has its owner
// and its order.
#include "backward/row_gradients.cuh"
#include "common/range.cuh"
#include "common/shared.cuh"

// The queries that chose each block, from route/invert.ts, of the heads taken. Without a routing all are null.
struct Lists {
  const int* counts;   // [heads taken, columns]
  const int* starts;   // [heads taken, columns]
  const int* entries;  // [heads taken, tokens, slots]
  int columns;
  int tokens;
  int slots;
  int block_size;
};

// d_out, q: [T, H, d]. k, v, dk, dv: [Tk, Hkv, d]. lse, deltas: [T, H]. A range is all of a sequence. Dynamic shared memory:
// two float32 rows a warp.
// Grid: (ranges · tiles of the longest range's keys, key heads taken, slabs); a tile is as many keys as the CTA has warps.
template <typename T, int V>
__device__ __forceinline__ void plain_key_gradients(const T* __restrict__ d_out, const T* __restrict__ q,
                                                    const T* __restrict__ k, const T* __restrict__ v, const float* lse,
                                                    const float* deltas, const Range* ranges, const Lists& lists, T* dk,
                                                    T* dv, int heads, int kv_heads, int head_dim, int first_kv_head,
                                                    int causal, int window, float scale, int tiles) {
  const Range range = ranges[blockIdx.x / tiles];
  const int key = blockIdx.x % tiles * (blockDim.x / WARP) + warp_id();
  if (key >= range.keys) return;
  const int kv_head = first_kv_head + blockIdx.y, group = heads / kv_heads, slab = blockIdx.z;
  const long long key_row = (static_cast<long long>(range.key_begin + key) * kv_heads + kv_head) * head_dim;

  OwnRow own(reinterpret_cast<float*>(sharedMemory), head_dim);
  own.bring(k + key_row, v + key_row, head_dim);

  // Without lists: the queries at positions from the key's own to key + window − 1.
  const int first = causal ? max(0, key - range.first_position) : 0;
  const long long end = static_cast<long long>(key) + window - range.first_position;
  const int last = causal ? static_cast<int>(min(static_cast<long long>(range.queries), end)) : range.queries;

  RowSum<T, V> key_sum, value_sum;
  for (int member = 0; member < group; member++) {
    const int head = kv_head * group + member;
    int count = last - first;
    const int* entries = nullptr;
    if (lists.entries != nullptr) {
      const long long list_head = static_cast<long long>(blockIdx.y) * group + member;
      const long long column = list_head * lists.columns + range.first_block + key / lists.block_size;
      count = lists.counts[column];
      entries = lists.entries + (list_head * lists.tokens + range.query_begin) * lists.slots + lists.starts[column];
    }
    for (int i = row_group(); i - row_group() < count; i += ROW_GROUPS) {
      bool there = i < count;
      int query = first + i;
      if (entries != nullptr) {
        query = there ? entries[i] / lists.slots : 0;
        there = there && (!causal || key <= range.first_position + query);
      }
      const long long row = static_cast<long long>(range.query_begin + query) * heads + head;
      const T *query_row = q + row * head_dim, *gradient_row = d_out + row * head_dim;
      const float2 products = own.products<T, V>(query_row, gradient_row, there, head_dim);
      if (!there) continue;
      const Weights weights(products, scale, lse[row], deltas[row]);
      key_sum.add(weights.ds, query_row, head_dim, slab);
      value_sum.add(weights.p, gradient_row, head_dim, slab);
    }
  }
  key_sum.finish(dk + key_row, scale, head_dim, slab);
  value_sum.finish(dv + key_row, 1.0f, head_dim, slab);
}

#define PLAIN_KEY_GRADIENTS(SUFFIX, T, V)                                                                            \
  extern "C" __global__ void __launch_bounds__(MOST_WARPS* WARP, 4)                                                   \
      plain_key_gradients_##SUFFIX(const T* d_out, const T* q, const T* k, const T* v, const float* lse,             \
                                   const float* deltas, const Range* ranges, Lists lists, T* dk, T* dv, int heads,   \
                                   int kv_heads, int head_dim, int first_kv_head, int causal, int window,            \
                                   float scale, int tiles) {                                                         \
    plain_key_gradients<T, V>(d_out, q, k, v, lse, deltas, ranges, lists, dk, dv, heads, kv_heads, head_dim,         \
                              first_kv_head, causal, window, scale, tiles);                                          \
  }

// Heads of a multiple of 16 bytes, and any heads.
PLAIN_KEY_GRADIENTS(f32, f32, 4)
PLAIN_KEY_GRADIENTS(f16, f16, 8)
PLAIN_KEY_GRADIENTS(bf16, bf16, 8)
PLAIN_KEY_GRADIENTS(f32_scalar, f32, 1)
PLAIN_KEY_GRADIENTS(f16_scalar, f16, 1)
PLAIN_KEY_GRADIENTS(bf16_scalar, bf16, 1)
