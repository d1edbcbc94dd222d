// Block routing (arXiv 2511.11571, section 2) by mma.sync: queries times rounded centroids, the best of each row kept in
// registers, no scores in memory.
//
// Each warp of a CTA has 16 queries of one head. The centroids that some of the CTA's queries may choose pass by in tiles of N,
// two of them in shared memory: one is used while the next one loads.
#include "common/pairs.cuh"
#include "common/range.cuh"
#include "common/shared.cuh"
#include "common/tile.cuh"
#include "ptx/mma.cuh"
#include "route/write_routing.cuh"

struct RouteArguments {
  const void* q;           // [T, H, d]
  const void* rounded;     // centroids in the dtype of q, [Hkv, all_blocks, d]
  const float* centroids;  // [all_blocks, Hkv, d]
  int* indices;            // [T, H, slots]
  const Range* ranges;     // of at most as many queries as a CTA has rows
  int heads, group;        // H, H/Hkv
  int all_blocks, block_size, causal, slots;
  int chosen;       // blocks that a query chooses by score, at most
  int column_mask;  // 2^b − 1, at least every block number of a sequence
};

// Late ranges have the most blocks to choose from: they go first.
__device__ __forceinline__ const Range& range_of_cta(const RouteArguments& a) {
  return a.ranges[gridDim.x - 1 - blockIdx.x];
}

template <typename T, int D>
__device__ __forceinline__ RoutingRows<T> rows_of_warp(const RouteArguments& a) {
  const Range range = range_of_cta(a);
  const int head = blockIdx.y, kv_heads = a.heads / a.group, first_row = warp_id() * 16;
  const long long row = (static_cast<long long>(range.query_begin) + first_row) * a.heads + head;
  RoutingRows<T> rows;
  rows.q = static_cast<const T*>(a.q) + row * D;
  rows.query_stride = static_cast<long long>(a.heads) * D;
  rows.centroids = a.centroids + (static_cast<long long>(range.first_key_block) * kv_heads + head / a.group) * D;
  rows.centroid_stride = static_cast<long long>(kv_heads) * D;
  rows.indices = a.indices + row * a.slots;
  rows.index_stride = static_cast<long long>(a.heads) * a.slots;
  rows.slots = a.slots;
  rows.rows = range.queries - first_row;
  rows.position = range.first_position + first_row;
  rows.blocks = ceil_div(range.keys, a.block_size);
  rows.block_size = a.block_size;
  rows.causal = a.causal;
  rows.chosen = a.chosen;
  return rows;
}

template <typename T, int D, int L, int WARPS, int N>
__device__ __forceinline__ void route(const RouteArguments& a) {
  using Rows = Tile<D>;
  constexpr int THREADS = WARPS * WARP;
  constexpr int TILE_BYTES = N * Rows::ROW_BYTES;
  constexpr bool HOLD = D * L <= 1024;  // queries in registers, where there is room
  constexpr int ROOM = N / 4 > L / 2 ? N / 4 : L / 2;  // words a lane, for scores and then for lists

  const uint32_t shared = static_cast<uint32_t>(__cvta_generic_to_shared(sharedMemory));
  const uint32_t queries = shared + 2 * TILE_BYTES + warp_id() * 16 * Rows::ROW_BYTES;
  float* room = reinterpret_cast<float*>(sharedMemory + 2 * TILE_BYTES + WARPS * 16 * Rows::ROW_BYTES);
  room += warp_id() * ROOM * WARP;

  // Row i of a lane may choose blocks before end[i]; the last row of the CTA may choose the most.
  const Range range = range_of_cta(a);
  int end[2], last_end;
  {
    const RoutingRows<T> rows = rows_of_warp<T, D>(a);
    for (int i = 0; i < 2; i++) end[i] = rows.candidates(min(lane_id() / 4 + 8 * i, rows.rows - 1));
    last_end = a.chosen == 0 ? 0 : rows.candidates(range.queries - 1 - warp_id() * 16);
    Rows::template gather_rows<16>(queries, rows.q, lane_id() < rows.rows ? lane_id() * rows.query_stride : -1);
    ptx::copy_commit();
  }

  const long long first_block = static_cast<long long>(blockIdx.y / a.group) * a.all_blocks + range.first_key_block;
  const T* rounded = static_cast<const T*>(a.rounded) + first_block * D;
  auto load = [&](int first) {
    Rows::template copy_rows<N, THREADS>(shared + first / N % 2 * TILE_BYTES, rounded + static_cast<long long>(first) * D,
                                         D, last_end - first);
    ptx::copy_commit();
  };
  if (last_end > 0) load(0);
  ptx::copy_wait<0>();
  __syncthreads();

  const int query_row = lane_id() % 16, column = lane_id() % 8 + lane_id() / 16 * 8;
  const int query_piece = Rows::swizzle(query_row) ^ (lane_id() / 16), piece = Rows::swizzle(column) ^ (lane_id() / 8 % 2);
  auto load_queries = [&](uint32_t(&fragment)[4], int kk) {
    ptx::ldmatrix_x4(fragment, queries + query_row * Rows::ROW_BYTES + ((2 * kk ^ query_piece) << 4));
  };
  uint32_t held[HOLD ? D / 16 : 1][4];
  if (HOLD) {
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) load_queries(held[HOLD ? kk : 0], kk);
  }

  TopK<L> best(a.column_mask);
  for (int first = 0; first < last_end; first += N) {
    if (first + N < last_end) load(first + N);
    if (__any_sync(ALL_LANES, first < max(end[0], end[1]))) {
      const uint32_t tile = shared + first / N % 2 * TILE_BYTES;
      float scores[N / 2] = {};
#pragma unroll
      for (int kk = 0; kk < D / 16; kk++) {
        if (!HOLD) load_queries(held[0], kk);
        const uint32_t* fragment = held[HOLD ? kk : 0];
#pragma unroll
        for (int j = 0; j < N / 16; j++) {
          uint32_t b[4];
          ptx::ldmatrix_x4(b, tile + (column + 16 * j) * Rows::ROW_BYTES + ((2 * kk ^ piece) << 4));
          ptx::mma_m16n8k16(scores + 8 * j, fragment, b[0], b[1], T{});
          ptx::mma_m16n8k16(scores + 8 * j + 4, fragment, b[2], b[3], T{});
        }
      }
      if (__all_sync(ALL_LANES, first + N <= min(end[0], end[1]))) {
        best.template take<false, N>(scores, first, end, room + lane_id());
      } else {
        best.template take<true, N>(scores, first, end, room + lane_id());
      }
    }
    ptx::copy_wait<0>();
    __syncthreads();
  }
  best.finish();
  write_routing<L, D>(best, reinterpret_cast<int*>(room), rows_of_warp<T, D>(a));
}

#define ROUTE(NAME, T, D, L, WARPS, N)                                        \
  extern "C" __global__ void __launch_bounds__(WARPS * WARP, L <= 16 ? 2 : 1) \
      NAME(const __grid_constant__ RouteArguments arguments) {                \
    route<T, D, L, WARPS, N>(arguments);                                      \
  }
// Of 256 channels half as many rows and columns, to fit in shared memory.
#define ROUTE_DIMS(TYPE, L)                                   \
  ROUTE(sm80_route_##TYPE##_d32_top##L, TYPE, 32, L, 8, 64)   \
  ROUTE(sm80_route_##TYPE##_d64_top##L, TYPE, 64, L, 8, 64)   \
  ROUTE(sm80_route_##TYPE##_d96_top##L, TYPE, 96, L, 8, 64)   \
  ROUTE(sm80_route_##TYPE##_d128_top##L, TYPE, 128, L, 8, 64) \
  ROUTE(sm80_route_##TYPE##_d256_top##L, TYPE, 256, L, 4, 32)

ROUTE_DIMS(bf16, 8)
ROUTE_DIMS(f16, 8)
ROUTE_DIMS(bf16, 16)
ROUTE_DIMS(f16, 16)
ROUTE_DIMS(bf16, 64)
ROUTE_DIMS(f16, 64)
