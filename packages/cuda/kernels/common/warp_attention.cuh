// Attention of a warp's query rows over chunks of keys in shared memory: mma.sync and online softmax.
#pragma once
#include "common/elements.cuh"
#include "common/pairs.cuh"
#include "common/softmax.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "ptx/exp2.cuh"
#include "ptx/mma.cuh"

// A window that hides nothing.
constexpr int NO_WINDOW = 0x7fffffff;

// `M` (1 or 2) tiles of 16 query rows, chunks of `K` keys. A lane holds, of each tile m, rows 16m + lane/4 + 8i (i = 0, 1), and
// of each 8 columns j the columns 8j + 2(lane%4) + e (e = 0, 1), as element [m][j][2i + e].
template <typename T, int D, int M, int K>
struct WarpAttention {
  using Rows = Tile<D>;
  using Scores = float[M][K / 8][4];
  static constexpr int ROWS = 16 * M;

  const float scale;  // of scores, times log2(e); positive: −Infinity, the score of a key not seen, must stay so
  const bool negate;  // scores are multiplied by −scale
  const int window;
  int end;                 // row lane % ROWS sees the keys from end − window to end − 1
  float out[M][D / 8][4];  // Σ weight · value
  float max[M][2];         // of the row's raw scores so far
  float sum[M][2];         // Σ weight over this lane's columns

  __device__ __forceinline__ WarpAttention(float scale, bool negate, int window)
      : scale(scale), negate(negate), window(window) {}

  __device__ __forceinline__ void reset(int end_of_row) {
    end = end_of_row;
#pragma unroll
    for (int m = 0; m < M; m++) {
      max[m][0] = max[m][1] = -INFINITY;
      sum[m][0] = sum[m][1] = 0;
#pragma unroll
      for (int j = 0; j < D / 8; j++) out[m][j][0] = out[m][j][1] = out[m][j][2] = out[m][j][3] = 0;
    }
  }

  // Whether some row of the warp sees a key of the chunk that begins at key `first`.
  __device__ __forceinline__ bool sees(int first) const {
    return __any_sync(ALL_LANES, end > first && end - window < first + K);
  }

  // Whether every row of the warp sees the whole chunk.
  __device__ __forceinline__ bool sees_all(int first) const {
    return __all_sync(ALL_LANES, end >= first + K && end - window <= first);
  }

  // What rows [m][i] of this lane see of the keys: those with `key_seen`.
  __device__ __forceinline__ void ends(int (&row_end)[M][2]) const {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < 2; i++) row_end[m][i] = __shfl_sync(ALL_LANES, end, 16 * m + lane_id() / 4 + 8 * i);
  }
  __device__ __forceinline__ bool key_seen(int row_end, int key) const {
    return static_cast<unsigned>(row_end - 1 - key) < static_cast<unsigned>(window);
  }

  // s = q · kᵀ. `queries` is the tile of the warp's own rows.
  __device__ __forceinline__ void scores(Scores& s, uint32_t queries, uint32_t keys) const {
    const int lane = anew(lane_id());
    const int query_row = lane % 16, key_row = lane % 8 + lane / 16 * 8;
    const int query_piece = Rows::swizzle(query_row) ^ (lane / 16), key_piece = Rows::swizzle(key_row) ^ (lane / 8 % 2);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int j = 0; j < K / 8; j++) s[m][j][0] = s[m][j][1] = s[m][j][2] = s[m][j][3] = 0;
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
      uint32_t q[M][4];
#pragma unroll
      for (int m = 0; m < M; m++) {
        ptx::ldmatrix_x4(q[m], queries + (query_row + 16 * m) * Rows::ROW_BYTES + ((2 * kk ^ query_piece) << 4));
      }
#pragma unroll
      for (int j = 0; j < K / 16; j++) {
        uint32_t b[4];
        ptx::ldmatrix_x4(b, keys + (key_row + 16 * j) * Rows::ROW_BYTES + ((2 * kk ^ key_piece) << 4));
#pragma unroll
        for (int m = 0; m < M; m++) {
          ptx::mma_m16n8k16(s[m][2 * j], q[m], b[0], b[1], T{});
          ptx::mma_m16n8k16(s[m][2 * j + 1], q[m], b[2], b[3], T{});
        }
      }
    }
    if (!negate) return;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int j = 0; j < K / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) s[m][j][e] = -s[m][j][e];
  }

  // Scores of keys that a row does not see are replaced, not multiplied: a NaN goes no further.
  __device__ __forceinline__ void mask(Scores& s, int first) const {
    int row_end[M][2];
    ends(row_end);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int j = 0; j < K / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          if (!key_seen(row_end[m][e / 2], first + 8 * j + lane_id() % 4 * 2 + e % 2)) s[m][j][e] = -INFINITY;
        }
  }

  // Scores become weights, 2^(score − max); what was summed before is brought to the new maximum.
  __device__ __forceinline__ void softmax(Scores& s) {
#pragma unroll
    for (int m = 0; m < M; m++) {
      float keep[2];
      bool changed = false;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float top = max[m][i];
#pragma unroll
        for (int j = 0; j < K / 8; j++) top = fmaxf(top, fmaxf(s[m][j][2 * i], s[m][j][2 * i + 1]));
        top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
        top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
        const float shift = shift_of(top * scale);
        keep[i] = ptx::exp2_approx(fmaf(max[m][i], scale, -shift));
        changed |= keep[i] != 1 && sum[m][i] != 0;
        max[m][i] = top;
        sum[m][i] *= keep[i];
#pragma unroll
        for (int j = 0; j < K / 8; j++) {
#pragma unroll
          for (int e = 2 * i; e < 2 * i + 2; e++) {
            s[m][j][e] = ptx::exp2_approx(fmaf(s[m][j][e], scale, -shift));
            sum[m][i] += s[m][j][e];
          }
        }
      }
      if (!__any_sync(ALL_LANES, changed)) continue;
#pragma unroll
      for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) out[m][j][e] *= keep[e / 2];
    }
  }

  // out += weights · values. `FiniteOnly` takes values that are not finite as zeros.
  template <bool FiniteOnly>
  __device__ __forceinline__ void accumulate(const Scores& weights, uint32_t values) {
    const int lane = anew(lane_id()), row = lane % 16, piece = Rows::swizzle(row) ^ (lane / 16);
#pragma unroll
    for (int kk = 0; kk < K / 16; kk++) {
      uint32_t p[M][4];
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float* pair = &weights[m][2 * kk + i / 2][i % 2 * 2];
          p[m][i] = pack<T>(pair[0], pair[1]);
        }
#pragma unroll
      for (int j = 0; j < D / 16; j++) {
        uint32_t b[4];
        ptx::ldmatrix_x4_transposed(b, values + (row + 16 * kk) * Rows::ROW_BYTES + ((2 * j ^ piece) << 4));
        if (FiniteOnly) {
#pragma unroll
          for (int i = 0; i < 4; i++) b[i] &= ~non_finite_halves<T>(b[i]);
        }
#pragma unroll
        for (int m = 0; m < M; m++) {
          ptx::mma_m16n8k16(out[m][2 * j], p[m], b[0], b[1], T{});
          ptx::mma_m16n8k16(out[m][2 * j + 1], p[m], b[2], b[3], T{});
        }
      }
    }
  }

  // Whether all values of a chunk are finite.
  static __device__ __forceinline__ bool all_finite(uint32_t values) {
    uint32_t bad = 0;
#pragma unroll 1
    for (int row = 0; row < K; row += 8) {
#pragma unroll
      for (int piece = 0; piece < Rows::PIECES; piece += 4) {
        uint32_t b[4];
        ptx::ldmatrix_x4(b, values + Rows::offset(row + lane_id() % 8, piece + lane_id() / 8));
#pragma unroll
        for (int i = 0; i < 4; i++) bad |= non_finite_halves<T>(b[i]);
      }
    }
    return !__any_sync(ALL_LANES, bad != 0);
  }

  // Adds values that are not finite to the rows that see them, and to no others: in a matrix product even a weight of zero
  // would spread a NaN.
  __device__ __forceinline__ void add_non_finite(uint32_t values, int first) {
    int row_end[M][2];
    ends(row_end);
#pragma unroll 1
    for (int key = 0; key < K; key++) {
#pragma unroll
      for (int j = 0; j < D / 8; j += 4) {
        uint32_t b[4];  // the lane's two columns of this key, of columns 8j, 8(j + 1) …
        ptx::ldmatrix_x4(b, values + Rows::offset(key, j + lane_id() / 8));
#pragma unroll
        for (int u = 0; u < 4; u++) {
          float x[2];
          unpack_pair<T>(x, b[u] & non_finite_halves<T>(b[u]));
#pragma unroll
          for (int m = 0; m < M; m++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
              if (key_seen(row_end[m][e / 2], first + key)) out[m][j + u][e] += x[e % 2];
            }
        }
      }
    }
  }

  // One chunk's part after `scores`: the keys from `first` on.
  __device__ __forceinline__ void add_chunk(Scores& s, uint32_t values, int first) {
    const bool masked = !sees_all(first);
    if (masked) mask(s, first);
    softmax(s);
    if (masked && !all_finite(values)) {
      accumulate<true>(s, values);
      add_non_finite(values, first);
    } else {
      accumulate<false>(s, values);
    }
  }

  // Normalizes the rows [m][i] and returns their log2 Σ 2^score.
  __device__ __forceinline__ float finish(int m, int i) {
    float total = sum[m][i];
    total += __shfl_xor_sync(ALL_LANES, total, 1);
    total += __shfl_xor_sync(ALL_LANES, total, 2);
    const float factor = inverse_sum(total);
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
      out[m][j][2 * i] *= factor;
      out[m][j][2 * i + 1] *= factor;
    }
    return log_sum(max[m][i] * scale, total);
  }
};
