// Dense and sliding-window attention on the float32 units: any dtype and head dimension, causal or not.
//
// A CTA takes 64 queries of a head through the keys that they see, 32 at a time, with a running softmax; 128 columns
// of the output at a time: for wider heads the scores are computed once a slab of columns. Window attention is causal
// attention that begins later.
#include "common/range.cuh"
#include "common/score_tile.cuh"
#include "common/softmax.cuh"

constexpr int COLUMNS_PER_LANE = 4;
constexpr int SLAB = WARP * COLUMNS_PER_LANE;

// The weight of a key that a query does not see: 0 would not do, since 0 · NaN is NaN.
constexpr float UNSEEN = -1.0f;

// Adds weights · values of one tile of keys.
__device__ __forceinline__ void add_values(float (&x)[QUERIES_PER_WARP][COLUMNS_PER_LANE], const float* weights,
                                           const float* values, int stride) {
#pragma unroll 2
  for (int row = 0; row < TILE_ROWS; row++) {
    const float4 y = *reinterpret_cast<const float4*>(values + row * stride);
#pragma unroll
    for (int i = 0; i < QUERIES_PER_WARP; i++) {
      const float weight = weights[i * TILE_ROWS + row];
      if (weight == UNSEEN) continue;
      x[i][0] += weight * y.x;
      x[i][1] += weight * y.y;
      x[i][2] += weight * y.z;
      x[i][3] += weight * y.w;
    }
  }
}

// q, out: [T, H, d]. k, v: [Tk, Hkv, d]. lse: [T, H]. window: a query at t sees the keys after t − window (a large
// one: all).
// Grid: (ranges · tiles of the longest range, H, slabs).
template <typename T>
__device__ __forceinline__ void plain_dense(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                                            const Range* ranges, T* out, float* lse, int heads, int kv_heads,
                                            int head_dim, int causal, int window, float scale, int tiles) {
  const int item = gridDim.x - 1 - blockIdx.x;  // the last queries see most keys: they begin first
  const Range range = ranges[item / tiles];
  const int first = item % tiles * TILE_QUERIES;  // of the tile, in the range
  if (first >= range.queries) return;
  const int head = blockIdx.y, kv_head = head / (heads / kv_heads), slab = blockIdx.z;
  const int queries = min(TILE_QUERIES, range.queries - first);
  const int warp_query = warp_id() * QUERIES_PER_WARP;
  const bool aligned = head_dim % PER_16_BYTES<T> == 0;

  // The first key that a query of the tile sees, and the first that it sees no more.
  const auto begin_of = [&](int query) {
    return causal ? max(0, range.first_position + first + query - window + 1) : 0;
  };
  const auto end_of = [&](int query) {
    return causal ? min(range.keys, range.first_position + first + query + 1) : range.keys;
  };
  const auto query_row = [&](int i) {
    return q + (static_cast<long long>(range.query_begin + first + i) * heads + head) * head_dim;
  };

  ScoreTile<T> tile(head_dim);
  float* weights =
      reinterpret_cast<float*>(sharedMemory + score_tile_bytes(head_dim)) + warp_query * TILE_ROWS;  // of this warp
  // Of query lane % 8: what all lanes would hold the same of.
  float lane_max = -INFINITY, lane_sum = 0.0f, lane_factor;
  float x[QUERIES_PER_WARP][COLUMNS_PER_LANE] = {};

  const int columns = min(SLAB, head_dim - slab * SLAB);
  const int end = end_of(queries - 1);
  for (int begin = begin_of(0); begin < end; begin += TILE_ROWS) {
    const int rows = min(TILE_ROWS, end - begin);
    const auto row_of = [&](const T* tensor) {
      return [=](int i) {
        return tensor + (static_cast<long long>(range.key_begin + begin + i) * kv_heads + kv_head) * head_dim;
      };
    };
    float scores[QUERIES_PER_WARP];
    tile.template multiply<T>(scores, query_row, queries, row_of(k), rows, begin == begin_of(0), aligned, aligned);

    const int key = begin + lane_id();
#pragma unroll
    for (int i = 0; i < QUERIES_PER_WARP; i++) weights[i * TILE_ROWS + lane_id()] = scores[i];
#pragma unroll 2
    for (int i = 0; i < QUERIES_PER_WARP; i++) {
      float& weight = weights[i * TILE_ROWS + lane_id()];
      const bool seen = key >= begin_of(warp_query + i) && key < end_of(warp_query + i);
      const float score = seen ? weight * (scale * LOG2_E) : -INFINITY;
      const float max = __shfl_sync(ALL_LANES, lane_max, i);
      const float highest = fmaxf(max, warp_max(score));
      const float p = exp2f(score - shift_of(highest));
      const float tile_sum = warp_sum(p);
      weight = seen ? p : UNSEEN;
      if (lane_id() % QUERIES_PER_WARP == i) {
        lane_factor = exp2f(max - shift_of(highest));
        lane_sum = lane_sum * lane_factor + tile_sum;
        lane_max = highest;
      }
    }
#pragma unroll
    for (int i = 0; i < QUERIES_PER_WARP; i++) {
      const float factor = __shfl_sync(ALL_LANES, lane_factor, i);
#pragma unroll
      for (int c = 0; c < COLUMNS_PER_LANE; c++) x[i][c] *= factor;
    }

    // The values take the place of the keys.
    __syncthreads();
    stage_rows<T>(tile.rows, tile.stride, row_of(v), rows, TILE_ROWS, slab * SLAB, columns, aligned);
    __syncthreads();
    if (lane_id() * COLUMNS_PER_LANE < columns) {
      add_values(x, weights, tile.rows + lane_id() * COLUMNS_PER_LANE, tile.stride);
    }
  }

#pragma unroll
  for (int i = 0; i < QUERIES_PER_WARP; i++) {
    if (warp_query + i >= queries) break;
    const long long row = static_cast<long long>(range.query_begin + first + warp_query + i) * heads + head;
    const float total = __shfl_sync(ALL_LANES, lane_sum, i), max = __shfl_sync(ALL_LANES, lane_max, i);
#pragma unroll
    for (int c = 0; c < COLUMNS_PER_LANE; c++) {
      const int column = lane_id() * COLUMNS_PER_LANE + c;
      if (column < columns) out[row * head_dim + slab * SLAB + column] = from_float<T>(x[i][c] * inverse_sum(total));
    }
    if (slab == 0 && lane_id() == 0) lse[row] = log_sum(max, total) * LN_2;
  }
}

#define PLAIN_DENSE(NAME, T)                                                                                         \
  extern "C" __global__ void __launch_bounds__(TILE_THREADS, 2)                                                      \
      NAME(const T* q, const T* k, const T* v, const Range* ranges, T* out, float* lse, int heads, int kv_heads,     \
           int head_dim, int causal, int window, float scale, int tiles) {                                           \
    plain_dense<T>(q, k, v, ranges, out, lse, heads, kv_heads, head_dim, causal, window, scale, tiles);              \
  }

PLAIN_DENSE(plain_dense_f32, f32)
PLAIN_DENSE(plain_dense_f16, f16)
PLAIN_DENSE(plain_dense_bf16, bf16)
