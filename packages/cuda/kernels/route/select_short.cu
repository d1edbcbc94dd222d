// The up to 64 best blocks of a query by written scores (block_scores). A CTA takes one query of one head; each warp
// finds the best of a contiguous part of the blocks, then one warp the best of those.
//
// A warp finds them one by one, the best first: each takes two reductions of the warp, whatever the scores are.
#include "common/range.cuh"
#include "common/rank.cuh"
#include "common/shared.cuh"
#include "common/warp.cuh"

constexpr int MOST_WARPS = 16;
constexpr int NEW = 16;          // candidates that a lane takes in at once
constexpr int PLACES = 2 + NEW;  // that it holds: its part of the list of the best, and the new ones

// Candidates in the registers of a warp. Places 0 and 1 are for the best so far: entry e, from high to low, is in place
// e / 32 of lane e % 32.
struct Candidates {
  uint32_t rank[PLACES];
  int block[PLACES];

  __device__ __forceinline__ Candidates() {
#pragma unroll
    for (int i = 0; i < PLACES; i++) {
      rank[i] = NO_RANK;
      block[i] = -1;
    }
  }

  // Leaves the `wanted` best. Of equal ranks the lower block is better; candidates of a lane are in order of their
  // blocks.
  __device__ __forceinline__ void keep_best(int wanted) {
    uint32_t best = 0;
    int best_block = 0;
    const auto find_best = [&] {
      best = NO_RANK;
      best_block = -1;
#pragma unroll
      for (int i = 0; i < PLACES; i++) {
        if (rank[i] > best) {
          best = rank[i];
          best_block = block[i];
        }
      }
    };
    find_best();
    uint32_t list_rank[2] = {NO_RANK, NO_RANK};
    int list_block[2] = {-1, -1};
    for (int entry = 0; entry < wanted; entry++) {
      const uint32_t highest = __reduce_max_sync(ALL_LANES, best);
      if (highest == NO_RANK) break;
      const int chosen = __reduce_min_sync(ALL_LANES, best == highest ? best_block : 0x7fffffff);
      if (lane_id() == entry % WARP) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          list_rank[i] = i == entry / WARP ? highest : list_rank[i];
          list_block[i] = i == entry / WARP ? chosen : list_block[i];
        }
      }
      if (best == highest && best_block == chosen) {
#pragma unroll
        for (int i = 0; i < PLACES; i++) rank[i] = block[i] == chosen ? NO_RANK : rank[i];
        find_best();
      }
      __syncwarp();
    }
#pragma unroll
    for (int i = 0; i < PLACES; i++) {
      rank[i] = i < 2 ? list_rank[i % 2] : NO_RANK;
      block[i] = i < 2 ? list_block[i % 2] : -1;
    }
  }
};

// scores: as block_scores writes them. indices: [T, H, slots], slots − causal ≤ 64. Dynamic shared memory: 8 · warps
// · slots.
// Grid: (ranges · queries of the longest range, H).
extern "C" __global__ void __launch_bounds__(MOST_WARPS* WARP)
    select_short(const float* scores, const Range* ranges, int* indices, int block_size, int slots, int causal,
                 int longest, int first_token, int stride) {
  const Range range = ranges[blockIdx.x / longest];
  const int query = blockIdx.x % longest;
  if (query >= range.queries) return;
  const int heads = gridDim.y, warps = blockDim.x / WARP, wanted = slots - causal;
  const long long token = range.query_begin + query;
  const float* row = scores + ((token - first_token) * heads + blockIdx.y) * stride;
  const int own = own_block(range.first_position + query, block_size);
  const int choices = causal ? max(0, own) : ceil_div(range.keys, block_size);

  uint32_t* ranks = reinterpret_cast<uint32_t*>(sharedMemory);  // [warps][wanted]
  int* blocks = reinterpret_cast<int*>(ranks) + warps * wanted;
  Candidates candidates;
  const int part = ceil_div(choices, warps);
  const int end = min((warp_id() + 1) * part, choices);
  for (int begin = warp_id() * part; begin < end; begin += NEW * WARP) {
#pragma unroll
    for (int i = 0; i < NEW; i++) {
      const int block = begin + i * WARP + lane_id();
      candidates.rank[2 + i] = block < end ? rank_of(row[block]) : NO_RANK;
      candidates.block[2 + i] = block;
    }
    candidates.keep_best(wanted);
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int entry = i * WARP + lane_id();
    if (entry >= wanted) continue;
    ranks[warp_id() * wanted + entry] = candidates.rank[i];
    blocks[warp_id() * wanted + entry] = candidates.block[i];
  }
  __syncthreads();
  if (warp_id() != 0) return;

  // The lists of the other warps.
  for (int begin = wanted; begin < warps * wanted; begin += NEW * WARP) {
#pragma unroll
    for (int i = 0; i < NEW; i++) {
      const int entry = begin + i * WARP + lane_id();
      const bool there = entry < warps * wanted;
      candidates.rank[2 + i] = there ? ranks[entry] : NO_RANK;
      candidates.block[2 + i] = there ? blocks[entry] : -1;
    }
    candidates.keep_best(wanted);
  }
  int* chosen = indices + (token * heads + blockIdx.y) * slots;
  if (causal && lane_id() == 0) chosen[0] = own;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int entry = i * WARP + lane_id();
    if (entry < wanted) chosen[causal + entry] = candidates.block[i];
  }
}
