// Attention that was computed in pieces (decode/split_attend.cu), put together in the order of the pieces: with piece
// results o_i of log-sum-exp l_i and L = log2 Σ 2^l_i, the result is Σ 2^(l_i − L) o_i.
#pragma once
#include "common/elements.cuh"
#include "common/softmax.cuh"
#include "common/warp.cuh"

// By a CTA of `Warps` warps, each of which sums up every `Warps`-th piece; `partial` is shared memory.
// piece_out: [pieces, d]. piece_lse: [pieces], base 2. out: [d]. lse: natural.
template <int Warps, int Columns, typename T>
__device__ __forceinline__ void merge_pieces(float (&partial)[Warps][Columns], const float* piece_out,
                                             const float* piece_lse, T* out, float* lse, int head_dim, int pieces) {
  float highest = -INFINITY;
  for (int piece = lane_id(); piece < pieces; piece += WARP) highest = fmaxf(highest, piece_lse[piece]);
  highest = warp_max(highest);
  float sum = 0.0f;
  for (int piece = lane_id(); piece < pieces; piece += WARP) sum += exp2f(piece_lse[piece] - shift_of(highest));
  const float total = log_sum(highest, warp_sum(sum));
  if (threadIdx.x == 0) *lse = total * LN_2;

  for (int begin = 0; begin < head_dim; begin += Columns) {
    const int columns = min(Columns, head_dim - begin);
    float x[Columns / WARP] = {};
#pragma unroll 4
    for (int piece = warp_id(); piece < pieces; piece += Warps) {
      // An empty piece has no result. Neither has a row without keys: its sum stays 0.
      const bool empty = piece_lse[piece] == -INFINITY;
      const float weight = empty ? 0.0f : exp2f(piece_lse[piece] - total);
#pragma unroll
      for (int i = 0; i < Columns / WARP; i++) {
        const int c = i * WARP + lane_id();
        const bool there = !empty && c < columns;
        x[i] += weight * (there ? piece_out[static_cast<long long>(piece) * head_dim + begin + c] : 0.0f);
      }
    }
    __syncthreads();  // the columns before have been read
#pragma unroll
    for (int i = 0; i < Columns / WARP; i++) partial[warp_id()][i * WARP + lane_id()] = x[i];
    __syncthreads();
    for (int c = threadIdx.x; c < columns; c += Warps * WARP) {
      float whole = 0.0f;
#pragma unroll
      for (int warp = 0; warp < Warps; warp++) whole += partial[warp][c];
      out[begin + c] = from_float<T>(whole);
    }
  }
}
