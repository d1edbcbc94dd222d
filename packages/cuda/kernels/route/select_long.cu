// The best blocks of a query by written scores (block_scores), for lists of any length. A CTA takes one query of one
// head: it finds the rank of the last block that is in, bit by bit, then writes out what lies above it, and of equal
// ones the lowest blocks.
#include "common/range.cuh"
#include "common/rank.cuh"
#include "common/warp.cuh"

constexpr int THREADS = 256;

// Sum over the CTA, the same in all threads.
__device__ __forceinline__ int cta_sum(int x, int* total) {
  __syncthreads();
  if (threadIdx.x == 0) *total = 0;
  __syncthreads();
  int sum;
  warp_prefix(x, sum);
  if (lane_id() == 0) atomicAdd(total, sum);
  __syncthreads();
  return *total;
}

// scores: as block_scores writes them. indices: [T, H, slots]. Grid: (ranges · queries of the longest range, H).
extern "C" __global__ void __launch_bounds__(THREADS)
    select_long(const float* scores, const Range* ranges, int* indices, int block_size, int slots, int causal,
                int longest, int first_token, int stride) {
  __shared__ int total;
  __shared__ int warp_above[THREADS / WARP], warp_equal[THREADS / WARP];
  const Range range = ranges[blockIdx.x / longest];
  const int query = blockIdx.x % longest;
  if (query >= range.queries) return;
  const int heads = gridDim.y, wanted = slots - causal;
  const long long token = range.query_begin + query;
  const float* row = scores + ((token - first_token) * heads + blockIdx.y) * stride;
  const int own = own_block(range.first_position + query, block_size);
  const int choices = causal ? max(0, own) : ceil_div(range.keys, block_size);
  int* chosen = indices + (token * heads + blockIdx.y) * slots;
  if (causal && threadIdx.x == 0) *chosen = own;
  chosen += causal;

  if (choices <= wanted) {
    for (int i = threadIdx.x; i < wanted; i += THREADS) chosen[i] = i < choices ? i : -1;
    return;
  }

  // The highest rank that `wanted` blocks reach.
  uint32_t last = 0;
  for (int bit = 31; bit >= 0; bit--) {
    const uint32_t candidate = last | 1u << bit;
    int reached = 0;
    for (int block = threadIdx.x; block < choices; block += THREADS) reached += rank_of(row[block]) >= candidate;
    if (cta_sum(reached, &total) >= wanted) last = candidate;
  }
  int higher = 0;
  for (int block = threadIdx.x; block < choices; block += THREADS) higher += rank_of(row[block]) > last;
  const int above = cta_sum(higher, &total);

  // Places: those above it first, then the equal ones, each in order of the blocks.
  int above_before = 0, equal_before = 0;
  for (int begin = 0; begin < choices; begin += THREADS) {
    const int block = begin + threadIdx.x;
    const uint32_t rank = block < choices ? rank_of(row[block]) : NO_RANK;
    const unsigned above_lanes = __ballot_sync(ALL_LANES, rank > last);
    const unsigned equal_lanes = __ballot_sync(ALL_LANES, rank == last);
    __syncthreads();
    if (lane_id() == 0) {
      warp_above[warp_id()] = __popc(above_lanes);
      warp_equal[warp_id()] = __popc(equal_lanes);
    }
    __syncthreads();
    const unsigned lanes_below = (1u << lane_id()) - 1;
    int above_place = above_before + __popc(above_lanes & lanes_below);
    int equal_place = above + equal_before + __popc(equal_lanes & lanes_below);
    for (int warp = 0; warp < THREADS / WARP; warp++) {
      if (warp < warp_id()) {
        above_place += warp_above[warp];
        equal_place += warp_equal[warp];
      }
      above_before += warp_above[warp];
      equal_before += warp_equal[warp];
    }
    if (rank > last) chosen[above_place] = block;
    else if (rank == last && equal_place < wanted) chosen[equal_place] = block;
  }
}
