// Attention that was computed in pieces (decode/split_attend.cu), put together in the order of the pieces: with piece
// results o_i of log-sum-exp l_i and L = log2 Σ 2^l_i, the result is Σ 2^(l_i − L) o_i. A CTA takes one query of one
// head.
#include "common/elements.cuh"
#include "common/softmax.cuh"
#include "common/warp.cuh"

constexpr int THREADS = 128;

// piece_out: [T, H, pieces, d]. piece_lse: [T, H, pieces], base 2. out: [T, H, d]. lse: [T, H], natural. Grid: (T ·
// H).
template <typename T>
__device__ __forceinline__ void merge_pieces(const float* __restrict__ piece_out, const float* __restrict__ piece_lse,
                                             T* out, float* lse, int head_dim, int pieces) {
  const long long row = blockIdx.x;
  piece_out += row * pieces * head_dim;
  piece_lse += row * pieces;
  float highest = -INFINITY;
  for (int piece = lane_id(); piece < pieces; piece += WARP) highest = fmaxf(highest, piece_lse[piece]);
  highest = warp_max(highest);
  float sum = 0.0f;
  for (int piece = lane_id(); piece < pieces; piece += WARP) sum += exp2f(piece_lse[piece] - shift_of(highest));
  const float total = log_sum(highest, warp_sum(sum));

  for (int c = threadIdx.x; c < head_dim; c += THREADS) {
    float x = 0.0f;
    for (int piece = 0; piece < pieces; piece++) {
      // An empty piece has no result. Neither has a row without keys: its sum stays 0.
      if (piece_lse[piece] == -INFINITY) continue;
      x += exp2f(piece_lse[piece] - total) * piece_out[static_cast<long long>(piece) * head_dim + c];
    }
    out[row * head_dim + c] = from_float<T>(x);
  }
  if (threadIdx.x == 0) lse[row] = total * LN_2;
}

#define MERGE_PIECES(NAME, T)                                                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
      NAME(const float* piece_out, const float* piece_lse, T* out, float* lse, int head_dim, int pieces) {           \
    merge_pieces<T>(piece_out, piece_lse, out, lse, head_dim, pieces);                                               \
  }

MERGE_PIECES(merge_pieces_f32, f32)
MERGE_PIECES(merge_pieces_f16, f16)
MERGE_PIECES(merge_pieces_bf16, bf16)
