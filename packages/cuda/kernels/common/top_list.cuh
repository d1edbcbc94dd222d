// The best blocks so far of one query: a sorted list in memory, which a warp takes into its registers to change it.
#pragma once
#include "common/rank.cuh"
#include "common/warp.cuh"

// The `wanted` ≤ 64 candidates of highest rank. Entry e, from high to low, is in register e / 32 of lane e % 32.
struct TopList {
  static constexpr int REGISTERS = 2;
  uint32_t rank[REGISTERS];
  int block[REGISTERS];

  __device__ __forceinline__ TopList(const uint32_t* ranks, const int* blocks, int wanted) {
#pragma unroll
    for (int r = 0; r < REGISTERS; r++) {
      const int entry = r * WARP + lane_id();
      rank[r] = entry < wanted ? ranks[entry] : NO_RANK;
      block[r] = entry < wanted ? blocks[entry] : -1;
    }
  }

  __device__ __forceinline__ void keep(uint32_t* ranks, int* blocks, int wanted) const {
#pragma unroll
    for (int r = 0; r < REGISTERS; r++) {
      const int entry = r * WARP + lane_id();
      if (entry < wanted) {
        ranks[entry] = rank[r];
        blocks[entry] = block[r];
      }
    }
  }

  // Takes a candidate of each lane. Of equal ranks the one that comes first stays ahead: candidates of equal rank
  // must come with ascending blocks, over the lanes and from call to call.
  __device__ __forceinline__ void take(uint32_t candidate, int candidate_block, int wanted) {
    unsigned better = __ballot_sync(ALL_LANES, candidate > threshold(wanted));
    while (better != 0) {
      const int from = __ffs(better) - 1;
      insert(__shfl_sync(ALL_LANES, candidate, from), __shfl_sync(ALL_LANES, candidate_block, from));
      better &= better - 1;
      better &= __ballot_sync(ALL_LANES, candidate > threshold(wanted));
    }
  }

 private:
  // What a candidate must surpass: the rank of entry wanted − 1.
  __device__ __forceinline__ uint32_t threshold(int wanted) const {
    return __shfl_sync(ALL_LANES, wanted > WARP ? rank[1] : rank[0], (wanted - 1) % WARP);
  }

  __device__ __forceinline__ void insert(uint32_t new_rank, int new_block) {
    int place = 0;
#pragma unroll
    for (int r = 0; r < REGISTERS; r++) place += __popc(__ballot_sync(ALL_LANES, rank[r] >= new_rank));
    // What leaves register 0 at its end enters register 1 at its beginning.
    const uint32_t carried_rank = __shfl_sync(ALL_LANES, rank[0], WARP - 1);
    const int carried_block = __shfl_sync(ALL_LANES, block[0], WARP - 1);
#pragma unroll
    for (int r = 0; r < REGISTERS; r++) {
      uint32_t shifted_rank = __shfl_up_sync(ALL_LANES, rank[r], 1);
      int shifted_block = __shfl_up_sync(ALL_LANES, block[r], 1);
      if (r == 1 && lane_id() == 0) {
        shifted_rank = carried_rank;
        shifted_block = carried_block;
      }
      const int entry = r * WARP + lane_id();
      if (entry > place) {
        rank[r] = shifted_rank;
        block[r] = shifted_block;
      } else if (entry == place) {
        rank[r] = new_rank;
        block[r] = new_block;
      }
    }
  }
};
