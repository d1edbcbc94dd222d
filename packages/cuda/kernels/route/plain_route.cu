// Block routing (arXiv 2511.11571, section 2) on the float32 units: any dtype, head dimension and block size.
//
// A CTA takes 64 queries of a head through the centroids that they may choose, 32 at a time, and keeps a list of the
// best blocks so far of each query in shared memory: no score goes to global memory.
#include "common/range.cuh"
#include "common/score_tile.cuh"
#include "common/top_list.cuh"

// q: [T, H, d]. centroids: [blocks, Hkv, d]. indices: [T, H, slots], slots − causal ≤ 64.
// Grid: (ranges · tiles of the longest range, H).
template <typename T>
__device__ __forceinline__ void plain_route(const T* __restrict__ q, const float* __restrict__ centroids,
                                            const Range* ranges, int* indices, int heads, int kv_heads, int head_dim,
                                            int block_size, int slots, int causal, int tiles) {
  const Range range = ranges[blockIdx.x / tiles];
  const int first = blockIdx.x % tiles * TILE_QUERIES;  // of the tile, in the range
  if (first >= range.queries) return;
  const int head = blockIdx.y, kv_head = head / (heads / kv_heads);
  const int queries = min(TILE_QUERIES, range.queries - first);
  const int wanted = slots - causal;

  // This warp's: scores of a tile [8][32], lists [8][wanted].
  ScoreTile<T> tile(head_dim);
  const int warp_query = warp_id() * QUERIES_PER_WARP;
  float* scores = reinterpret_cast<float*>(sharedMemory + score_tile_bytes(head_dim)) + warp_query * TILE_ROWS;
  uint32_t* ranks = reinterpret_cast<uint32_t*>(sharedMemory + score_tile_bytes(head_dim)) + TILE_QUERIES * TILE_ROWS +
                    warp_query * wanted;
  int* blocks = reinterpret_cast<int*>(ranks) + TILE_QUERIES * wanted;
  for (int i = lane_id(); i < QUERIES_PER_WARP * wanted; i += WARP) {
    ranks[i] = NO_RANK;
    blocks[i] = -1;
  }
  __syncwarp();

  // Blocks that a query of the tile chooses among by score: those before its own, or all.
  const auto choices = [&](int query) {
    return causal ? max(0, own_block(range.first_position + first + query, block_size))
                  : ceil_div(range.keys, block_size);
  };
  const auto query_row = [&](int i) {
    return q + (static_cast<long long>(range.query_begin + first + i) * heads + head) * head_dim;
  };
  const int most = wanted == 0 ? 0 : choices(queries - 1);
  for (int begin = 0; begin < most; begin += TILE_ROWS) {
    const auto centroid = [&](int i) {
      return centroids + (static_cast<long long>(range.first_key_block + begin + i) * kv_heads + kv_head) * head_dim;
    };
    float products[QUERIES_PER_WARP];
    tile.template multiply<float>(products, query_row, queries, centroid, min(TILE_ROWS, most - begin), begin == 0,
                                  head_dim % PER_16_BYTES<T> == 0, head_dim % PER_16_BYTES<float> == 0);
#pragma unroll
    for (int i = 0; i < QUERIES_PER_WARP; i++) scores[i * TILE_ROWS + lane_id()] = products[i];
    const int block = begin + lane_id();
#pragma unroll 1
    for (int i = 0; i < QUERIES_PER_WARP; i++) {
      const uint32_t rank = block < choices(warp_query + i) ? rank_of(scores[i * TILE_ROWS + lane_id()]) : NO_RANK;
      if (!__any_sync(ALL_LANES, rank > ranks[i * wanted + wanted - 1])) continue;
      TopList list(ranks + i * wanted, blocks + i * wanted, wanted);
      list.take(rank, block, wanted);
      list.keep(ranks + i * wanted, blocks + i * wanted, wanted);
      __syncwarp();
    }
  }

  // The own block first, then the list.
  for (int i = 0; i < QUERIES_PER_WARP && warp_query + i < queries; i++) {
    const int query = first + warp_query + i;
    int* row = indices + (static_cast<long long>(range.query_begin + query) * heads + head) * slots;
    if (causal && lane_id() == 0) row[0] = own_block(range.first_position + query, block_size);
    for (int entry = lane_id(); entry < wanted; entry += WARP) row[causal + entry] = blocks[i * wanted + entry];
  }
}

#define PLAIN_ROUTE(NAME, T)                                                                                          \
  extern "C" __global__ void __launch_bounds__(TILE_THREADS, 2)                                                       \
      NAME(const T* q, const float* centroids, const Range* ranges, int* indices, int heads, int kv_heads,            \
           int head_dim, int block_size, int slots, int causal, int tiles) {                                          \
    plain_route<T>(q, centroids, ranges, indices, heads, kv_heads, head_dim, block_size, slots, causal, tiles);       \
  }

PLAIN_ROUTE(plain_route_f32, f32)
PLAIN_ROUTE(plain_route_f16, f16)
PLAIN_ROUTE(plain_route_bf16, bf16)
