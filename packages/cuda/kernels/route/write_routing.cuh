// From the candidates of rows to their routing: near ties are settled in float32, the own block is added.
#pragma once
#include "common/elements.cuh"
#include "common/range.cuh"
#include "common/top_k.cuh"

// The 16 rows of a warp's accumulators and what their routing depends on. Strides are in elements.
template <typename T>
struct RoutingRows {
  const T* q;  // of the first row
  long long query_stride;
  const float* centroids;  // of the sequence's first block
  long long centroid_stride;
  int* indices;  // of the first row
  long long index_stride;
  int slots;
  int rows;      // that there are, of 16
  int position;  // of the first row
  int blocks;    // of the sequence
  int block_size, causal;
  int chosen;  // blocks that a row chooses by score, at most

  __device__ __forceinline__ int own(int row) const { return causal ? own_block(position + row, block_size) : -1; }
  // Blocks that a row may choose from, and blocks that it chooses.
  __device__ __forceinline__ int candidates(int row) const { return causal ? max(own(row), 0) : blocks; }
  __device__ __forceinline__ int wanted(int row) const { return min(chosen, candidates(row)); }
};

// How far scores from rounded centroids, with the low bits gone, may lie apart and still tie: as a share of the largest.
__device__ __forceinline__ float score_slack(int column_mask) { return 0x1p-8f + column_mask * 0x1p-22f; }

// Whether the last candidate chosen and the first one not chosen may have to change places.
template <int L>
__device__ __forceinline__ bool near_tie(const int* keys, int wanted, int column_mask, float& slack) {
  if (wanted == 0 || wanted >= L || keys[wanted] == NO_CANDIDATE) return false;
  const float last = candidate_score(keys[wanted - 1], column_mask), next = candidate_score(keys[wanted], column_mask);
  slack = fmaxf(fabsf(candidate_score(keys[0], column_mask)), fabsf(next)) * score_slack(column_mask);
  return last - next < slack;
}

// Sorts the candidates around the last one chosen by their scores in float32; at most as many as a warp has lanes.
template <int L, int D, typename T>
__device__ __forceinline__ void settle_near_tie(int* keys, int wanted, int column_mask, float slack, const T* q,
                                                const float* centroids, long long centroid_stride) {
  const float last = candidate_score(keys[wanted - 1], column_mask), next = candidate_score(keys[wanted], column_mask);
  int begin = wanted - 1, end = wanted + 1;
  while (begin > 0 && end - begin < WARP / 2 && candidate_score(keys[begin - 1], column_mask) - next < slack) begin--;
  while (end < L && end - begin < WARP && keys[end] != NO_CANDIDATE &&
         last - candidate_score(keys[end], column_mask) < slack) {
    end++;
  }

  const int key = begin + lane_id() < end ? keys[begin + lane_id()] : NO_CANDIDATE;
  const int column = candidate_column(key, column_mask);
  float score = -INFINITY;
  for (int i = 0; i < end - begin; i++) {
    const float* centroid = centroids + __shfl_sync(ALL_LANES, column, i) * centroid_stride;
    float product = 0;
#pragma unroll
    for (int c = lane_id(); c < D; c += WARP) product += to_float(q[c]) * centroid[c];
    product = warp_sum(product);
    if (lane_id() == i) score = fmaxf(product, -INFINITY);  // NaN counts as −Infinity
  }
  int rank = begin;
  for (int i = 0; i < end - begin; i++) {
    const float other = __shfl_sync(ALL_LANES, score, i);
    const int other_column = __shfl_sync(ALL_LANES, column, i);
    rank += other > score || (other == score && other_column < column);
  }
  __syncwarp();
  if (begin + lane_id() < end) keys[rank] = key;
  __syncwarp();
}

// `list`: 16·L integers of shared memory for this warp. `best` must be finished.
template <int L, int D, typename T>
__device__ __forceinline__ void write_routing(const TopK<L>& best, int* list, const RoutingRows<T>& r) {
  constexpr int LANES = L < WARP ? L : WARP;  // to a row
  const int mask = best.column_mask;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int e = 0; e < L; e++) {
      if (e % 4 == lane_id() % 4) list[(lane_id() / 4 + 8 * i) * L + e] = best.keys[i][e];
    }
  __syncwarp();
  for (int first = 0; first < min(r.rows, 16); first += WARP / LANES) {
    const int row = first + lane_id() / LANES;
    float slack = 0;
    const unsigned near = __ballot_sync(ALL_LANES, row < r.rows && near_tie<L>(list + row * L, r.wanted(row), mask, slack));
    for (int lane = 0; lane < WARP; lane += LANES) {
      if (!(near >> lane & 1)) continue;
      const int tied = first + lane / LANES;
      settle_near_tie<L, D>(list + tied * L, r.wanted(tied), mask, __shfl_sync(ALL_LANES, slack, lane),
                            r.q + tied * r.query_stride, r.centroids, r.centroid_stride);
    }
    for (int slot = lane_id() % LANES; row < r.rows && slot < r.slots; slot += LANES) {
      const int wanted = r.wanted(row);
      int block = -1;
      if (slot < wanted) block = candidate_column(list[row * L + slot], mask);
      else if (slot == wanted) block = r.own(row);
      r.indices[row * r.index_stride + slot] = block;
    }
  }
}
