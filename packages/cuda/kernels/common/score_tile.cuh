// Products of a tile of queries with a tile of rows (keys or centroids) on the float32 units, for any d.
// Rows lie in shared memory as float32; each warp takes 8 queries, each lane one row.
#pragma once
#include "common/elements.cuh"
#include "common/shared.cuh"
#include "common/warp.cuh"

constexpr int TILE_THREADS = 256;
constexpr int QUERIES_PER_WARP = 8;
constexpr int TILE_QUERIES = TILE_THREADS / WARP * QUERIES_PER_WARP;
constexpr int TILE_ROWS = WARP;
// Columns in shared memory at a time.
constexpr int CHUNK = 128;

// Floats from one staged row to the next. A lane reads 16 bytes of its own row: 4 more than a multiple of 32 puts
// them into different banks.
__device__ __forceinline__ int staged_stride(int head_dim) { return (min(head_dim, CHUNK) + 31) / 32 * 32 + 4; }

// Bytes of shared memory that a ScoreTile takes.
__device__ __forceinline__ int score_tile_bytes(int head_dim) {
  return (TILE_QUERIES + TILE_ROWS) * staged_stride(head_dim) * static_cast<int>(sizeof(float));
}

// Brings columns `begin … begin + columns − 1` of some rows to shared memory, padded with zeros to a multiple of 4
// columns and to `padded_rows` rows. `row(i)` is the address of row i. `aligned`: rows are multiples of 16 bytes.
template <typename T, typename Row>
__device__ __forceinline__ void stage_rows(float* target, int stride, Row row, int rows, int padded_rows, int begin,
                                           int columns, bool aligned) {
  constexpr int V = PER_16_BYTES<T>;
  if (aligned) {
    const int packets = columns / V;
#pragma unroll 2
    for (int i = threadIdx.x; i < padded_rows * packets; i += TILE_THREADS) {
      const int r = i / packets, column = i % packets * V;
      float x[V] = {};
      if (r < rows) unpack(x, load<T, V>(row(r) + begin + column));
#pragma unroll
      for (int c = 0; c < V; c += 4) {
        *reinterpret_cast<float4*>(target + r * stride + column + c) = make_float4(x[c], x[c + 1], x[c + 2], x[c + 3]);
      }
    }
  } else {
    const int padded = (columns + 3) / 4 * 4;
#pragma unroll 2
    for (int i = threadIdx.x; i < padded_rows * padded; i += TILE_THREADS) {
      const int r = i / padded, column = i % padded;
      target[r * stride + column] = r < rows && column < columns ? to_float(row(r)[begin + column]) : 0.0f;
    }
  }
}

// Adds the products of the warp's 8 queries with the lane's row over staged columns.
__device__ __forceinline__ void add_products(float (&products)[QUERIES_PER_WARP], const float* queries,
                                             const float* row, int stride, int columns) {
#pragma unroll 1
  for (int c = 0; c < columns; c += 4) {
    const float4 y = *reinterpret_cast<const float4*>(row + c);
#pragma unroll
    for (int i = 0; i < QUERIES_PER_WARP; i++) {
      const float4 x = *reinterpret_cast<const float4*>(queries + i * stride + c);
      products[i] += x.x * y.x;
      products[i] += x.y * y.y;
      products[i] += x.z * y.z;
      products[i] += x.w * y.w;
    }
  }
}

// A tile of queries against one tile of rows after the other. Every thread of the CTA calls everything.
template <typename T>
struct ScoreTile {
  float* queries;  // [64][stride]
  float* rows;     // [32][stride]
  int stride;
  int head_dim;

  __device__ __forceinline__ explicit ScoreTile(int head_dim)
      : queries(reinterpret_cast<float*>(sharedMemory)),
        rows(queries + TILE_QUERIES * staged_stride(head_dim)),
        stride(staged_stride(head_dim)),
        head_dim(head_dim) {}

  // Products of this warp's queries with this lane's row. `query(i)` and `row(i)` are addresses; the queries must be
  // the same in all calls, since those of few columns stay in shared memory from the first call on.
  template <typename Row, typename QueryAddress, typename RowAddress>
  __device__ __forceinline__ void multiply(float (&products)[QUERIES_PER_WARP], QueryAddress query, int query_count,
                                           RowAddress row, int row_count, bool first, bool query_aligned,
                                           bool row_aligned) {
#pragma unroll
    for (int i = 0; i < QUERIES_PER_WARP; i++) products[i] = 0.0f;
    for (int begin = 0; begin < head_dim; begin += CHUNK) {
      const int columns = min(CHUNK, head_dim - begin);
      __syncthreads();
      if (first || head_dim > CHUNK) {
        stage_rows<T>(queries, stride, query, query_count, TILE_QUERIES, begin, columns, query_aligned);
      }
      stage_rows<Row>(rows, stride, row, row_count, TILE_ROWS, begin, columns, row_aligned);
      __syncthreads();
      add_products(products, queries + warp_id() * QUERIES_PER_WARP * stride, rows + lane_id() * stride, stride,
                   columns);
    }
  }
};
