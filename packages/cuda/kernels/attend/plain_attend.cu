// Attention over routed blocks (arXiv 2511.11571, section 2) on the float32 units: any dtype, head dimension, block
// size and routing.
// A warp takes one query of one head through its blocks; the warps of a CTA take neighbours, which share their own
// block.
#include "common/range.cuh"
#include "common/row_attention.cuh"
#include "common/shared.cuh"

constexpr int MOST_WARPS = 4;

// q, out: [T, H, d]. k, v: [Tk, Hkv, d]. indices: [T, H, slots]. lse: [T, H]. Dynamic shared memory: a float32 query
// a warp.
// Grid: (ranges · tiles of the longest range, H, slabs); a tile is as many queries as the CTA has warps.
template <typename T, int V>
__device__ __forceinline__ void plain_attend(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                                             const int* __restrict__ indices, const Range* ranges, T* out, float* lse,
                                             int heads, int kv_heads, int head_dim, int block_size, int slots,
                                             int causal, float scale, int tiles) {
  const Range range = ranges[blockIdx.x / tiles];
  const int query = blockIdx.x % tiles * (blockDim.x / WARP) + warp_id();
  if (query >= range.queries) return;
  const int head = blockIdx.y, slab = blockIdx.z;
  const int position = range.first_position + query;
  const int limit = causal ? min(range.keys, position + 1) : range.keys;
  const long long row = static_cast<long long>(range.query_begin + query) * heads + head;
  const long long step = static_cast<long long>(kv_heads) * head_dim;
  const long long first_key = range.key_begin * step + head / (heads / kv_heads) * head_dim;

  float* query_row = reinterpret_cast<float*>(sharedMemory) + warp_id() * ((head_dim + 3) / 4 * 4);
  for (int c = lane_id(); c < head_dim; c += WARP) query_row[c] = to_float(q[row * head_dim + c]);
  __syncwarp();

  RowAttention<T, V> attention;
  for (int slot = 0; slot < slots; slot++) {
    const int block = indices[row * slots + slot];
    if (block < 0) continue;
    const int begin = block * block_size;
    const long long at = first_key + begin * step;
    attention.add(k + at, v + at, step, min(block_size, limit - begin), query_row, scale * LOG2_E, head_dim, slab);
  }
  attention.merge_groups();

  if (lane_id() >= KEY_LANES) return;
  const float inverse = inverse_sum(attention.sum);
#pragma unroll
  for (int i = 0; i < RowAttention<T, V>::PACKETS; i++) {
    const int column = attention.column(slab, i);
    if (column >= head_dim) break;
#pragma unroll
    for (int c = 0; c < V; c++) attention.out[i][c] *= inverse;
    store(out + row * head_dim + column, attention.out[i]);
  }
  if (slab == 0 && lane_id() == 0) lse[row] = log_sum(attention.max, attention.sum) * LN_2;
}

#define PLAIN_ATTEND(NAME, T, V)                                                                                     \
  extern "C" __global__ void __launch_bounds__(MOST_WARPS* WARP, 3)                                                   \
      NAME(const T* q, const T* k, const T* v, const int* indices, const Range* ranges, T* out, float* lse,          \
           int heads, int kv_heads, int head_dim, int block_size, int slots, int causal, float scale, int tiles) {   \
    plain_attend<T, V>(q, k, v, indices, ranges, out, lse, heads, kv_heads, head_dim, block_size, slots, causal,     \
                       scale, tiles);                                                                                \
  }

// Rows of a multiple of 16 bytes, and any rows.
PLAIN_ATTEND(plain_attend_f32, f32, 4)
PLAIN_ATTEND(plain_attend_f16, f16, 8)
PLAIN_ATTEND(plain_attend_bf16, bf16, 8)
PLAIN_ATTEND(plain_attend_f32_scalar, f32, 1)
PLAIN_ATTEND(plain_attend_f16_scalar, f16, 1)
PLAIN_ATTEND(plain_attend_bf16_scalar, bf16, 1)
