// Gradients of attention by one row, a query's or a key's, by one warp, straight from global memory. With
// p = exp(scale·q·k − lse), D = dOut·out and ds = p (dOut·v − D): dq = scale Σ ds k, dk = scale Σ ds q, dv = Σ p dOut.
//
// A query's row is its pair (q, dOut), a key's its pair (k, v): of a query and a key, the products of the first and of the
// second halves are all that is needed.
#pragma once
#include "common/elements.cuh"
#include "common/warp.cuh"

// 8 lanes lie along a row, a packet each at a time; so 4 groups of lanes take different rows.
constexpr int ROW_LANES = 8;
constexpr int ROW_GROUPS = WARP / ROW_LANES;
// Columns of a gradient that a warp holds. Wider heads are cut into slabs, and their products computed once a slab.
constexpr int SLAB = 128;
constexpr int MOST_WARPS = 4;

__device__ __forceinline__ int row_group() { return lane_id() / ROW_LANES; }

// What a query adds to the products with a key: p and ds.
struct Weights {
  float p;
  float ds;

  __device__ __forceinline__ Weights(float2 products, float scale, float lse, float delta)
      : p(expf(scale * products.x - lse)), ds(p * (products.y - delta)) {}
};

// The warp's own pair of rows, float32 in shared memory.
struct OwnRow {
  float* first;
  float* second;

  __device__ __forceinline__ OwnRow(float* shared, int head_dim) {
    const int padded = (head_dim + 3) / 4 * 4;
    first = shared + warp_id() * 2 * padded;
    second = first + padded;
  }

  template <typename T>
  __device__ __forceinline__ void bring(const T* first_row, const T* second_row, int head_dim) {
    for (int c = lane_id(); c < head_dim; c += WARP) {
      first[c] = to_float(first_row[c]);
      second[c] = to_float(second_row[c]);
    }
    __syncwarp();
  }

  // The products with the pair of the lane's group, the same in all lanes of the group; 0 where it is not `there`.
  // All lanes of the warp call it.
  template <typename T, int V>
  __device__ __forceinline__ float2 products(const T* other_first, const T* other_second, bool there,
                                             int head_dim) const {
    float2 sum = make_float2(0.0f, 0.0f);
    if (there) {
#pragma unroll 2
      for (int c = lane_id() % ROW_LANES * V; c < head_dim; c += ROW_LANES * V) {
        float x[V], y[V];
        unpack(x, load<T, V>(other_first + c));
        unpack(y, load<T, V>(other_second + c));
#pragma unroll
        for (int i = 0; i < V; i++) {
          sum.x += first[c + i] * x[i];
          sum.y += second[c + i] * y[i];
        }
      }
    }
    return make_float2(warp_sum<ROW_LANES>(sum.x), warp_sum<ROW_LANES>(sum.y));
  }
};

// A weighted sum of rows: a slab of its columns, each group of lanes the sum of its own rows.
template <typename T, int V>
struct RowSum {
  static constexpr int PACKETS = SLAB / (ROW_LANES * V);

  float sum[PACKETS][V] = {};

  // First column of this lane's packet i.
  static __device__ __forceinline__ int column(int slab, int i) {
    return slab * SLAB + (i * ROW_LANES + lane_id() % ROW_LANES) * V;
  }

  __device__ __forceinline__ void add(float weight, const T* row, int head_dim, int slab) {
#pragma unroll
    for (int i = 0; i < PACKETS; i++) {
      float x[V] = {};
      if (column(slab, i) < head_dim) unpack(x, load<T, V>(row + column(slab, i)));
#pragma unroll
      for (int c = 0; c < V; c++) sum[i][c] += weight * x[c];
    }
  }

  // Adds the groups up and stores `factor` times the sum. All lanes of the warp call it.
  __device__ __forceinline__ void finish(T* row, float factor, int head_dim, int slab) {
#pragma unroll
    for (int i = 0; i < PACKETS; i++) {
#pragma unroll
      for (int c = 0; c < V; c++) {
        sum[i][c] += __shfl_xor_sync(ALL_LANES, sum[i][c], ROW_LANES);
        sum[i][c] += __shfl_xor_sync(ALL_LANES, sum[i][c], 2 * ROW_LANES);
        sum[i][c] *= factor;
      }
      if (row_group() == 0 && column(slab, i) < head_dim) store(row + column(slab, i), sum[i]);
    }
  }
};
