// Running top-L of rows of scores that lie in the accumulators of a matrix product: lane t of a warp holds, of rows t/4 and
// t/4 + 8, columns 8j + 2(t%4) + {0, 1} as elements 4j + {0, 1} and 4j + {2, 3} (mma.sync and wgmma alike).
//
// Each lane keeps the best of its own columns. Most scores are below what the row has already, so a score costs a comparison:
// those above are put down in shared memory, and inserted when the tile is through, all lanes together.
#pragma once
#include <cfloat>
#include <cmath>

#include "common/warp.cuh"

// A candidate in one integer, in order of preference: the leading bits of the score (rounded down), then the complement of
// the column, so that of equal scores the lower column is preferred. NaN counts as −Infinity, −0 as 0. `column_mask` is
// 2^b − 1, at least every column.
__device__ __forceinline__ int candidate(float score, int column, int column_mask) {
  const int bits = __float_as_int(fmaxf(score + 0.0f, -FLT_MAX));  // fmaxf drops NaN
  const int ordered = bits ^ (bits >> 31 & 0x7fffffff);
  return (ordered & ~column_mask) | (column ^ column_mask);
}
__device__ __forceinline__ int candidate_column(int key, int column_mask) { return (key & column_mask) ^ column_mask; }
__device__ __forceinline__ float candidate_score(int key, int column_mask) {
  const int ordered = key & ~column_mask;
  return __int_as_float(ordered ^ (ordered >> 31 & 0x7fffffff));
}
// Below every candidate.
constexpr int NO_CANDIDATE = static_cast<int>(0x80000000);

// The best of the two rows of a lane.
template <int L>
struct TopK {
  int keys[2][L];  // descending
  float bound[2];  // the row has L candidates that no score up to this can displace; NaN: not yet
  int column_mask;

  __device__ __forceinline__ explicit TopK(int column_mask) : column_mask(column_mask) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      bound[i] = NAN;
#pragma unroll
      for (int e = 0; e < L; e++) keys[i][e] = NO_CANDIDATE;
    }
  }

  // Takes `N` columns of scores, from `first` on; tiles must come in ascending order. `end[i]`: the columns of row i, looked at
  // only when `Masked`. `room`: N/4 floats of this lane in shared memory, WARP apart.
  template <bool Masked, int N>
  __device__ __forceinline__ void take(const float (&scores)[N / 2], int first, const int (&end)[2], float* room) {
    first += lane_id() % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      unsigned above = 0;  // bit c: the lane's column c is above the bound
#pragma unroll
      for (int c = 0; c < N / 4; c++) {
        const float score = scores[c / 2 * 4 + 2 * i + c % 2];
        // Equal to the bound is not enough: all columns before are lower. NaN passes.
        if (!(score <= bound[i]) && (!Masked || first + c / 2 * 8 + c % 2 < end[i])) {
          room[c * WARP] = score;
          above |= 1u << c;
        }
      }
      if (!__any_sync(ALL_LANES, above != 0)) continue;
      do {
        int key = NO_CANDIDATE;
        if (above != 0) {
          const int c = __ffs(above) - 1;
          key = candidate(room[c * WARP], first + c / 2 * 8 + c % 2, column_mask);
          above &= above - 1;
        }
        insert(keys[i], key);
      } while (__any_sync(ALL_LANES, above != 0));
      bound[i] = bound_of(keys[i]);
    }
  }

  // Brings the lists of the four lanes of each row together: then each of them has the row's best.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int distance = 1; distance <= 2; distance *= 2) {
        int other[L];
#pragma unroll
        for (int e = 0; e < L; e++) other[e] = __shfl_xor_sync(ALL_LANES, keys[i][e], distance);
        // One list up, one down: the larger of each pair are the best L, up and down; then sorted by halves.
#pragma unroll
        for (int e = 0; e < L; e++) keys[i][e] = max(keys[i][e], other[L - 1 - e]);
#pragma unroll
        for (int half = L / 2; half > 0; half /= 2) {
#pragma unroll
          for (int e = 0; e < L; e++) {
            if (e & half) continue;
            const int high = max(keys[i][e], keys[i][e + half]);
            keys[i][e + half] = min(keys[i][e], keys[i][e + half]);
            keys[i][e] = high;
          }
        }
      }
    }
  }

 private:
  static __device__ __forceinline__ void insert(int (&list)[L], int key) {
#pragma unroll
    for (int e = 0; e < L; e++) {
      const int high = max(list[e], key);
      key = min(list[e], key);
      list[e] = high;
    }
  }

  // A score that L candidates of the row have at least: one lane's L-th, two lanes' L/2-th or all lanes' L/4-th.
  __device__ __forceinline__ float bound_of(const int (&list)[L]) const {
    int one = list[L - 1], two = list[L / 2 - 1], four = list[L / 4 - 1];
    two = min(two, __shfl_xor_sync(ALL_LANES, two, 1));
    four = min(four, __shfl_xor_sync(ALL_LANES, four, 1));
    four = min(four, __shfl_xor_sync(ALL_LANES, four, 2));
    one = max(one, two);
    one = max(one, __shfl_xor_sync(ALL_LANES, one, 1));
    one = max(max(one, four), __shfl_xor_sync(ALL_LANES, one, 2));
    return one == NO_CANDIDATE ? NAN : candidate_score(one, column_mask);
  }
};
