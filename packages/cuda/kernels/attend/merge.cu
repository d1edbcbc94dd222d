// Merging the partial outputs of routed attention: each query's row from those of its slots.
#include "common/merge_rows.cuh"
#include "common/query_rows.cuh"
#include "common/warp.cuh"

constexpr int THREADS = 256;

// Rows as query_rows.cuh has them.
struct MergeArguments {
  const uint4* partial;      // [rows, slots, d], in accumulator order
  const float* partial_lse;  // [rows, slots], base 2
  const int* indices;        // [T, H, slots]
  void* out;                 // [T, H, d]
  float* lse;                // [T, H], natural
  int* suspect_count;        // zero; null: nobody asks
  int* suspects;             // rows token · H + head that came out not finite
  int heads, slots, first_head, first_token, tokens;
  int rows;
};

// A quad of lanes takes 32 columns of a row.
template <typename T, int D>
__device__ __forceinline__ void merge(const MergeArguments& a) {
  constexpr int PIECES = D / 8, QUADS = D / 32;
  const long long quad = static_cast<long long>(blockIdx.x) * (THREADS / 4) + threadIdx.x / 4;
  const int row = static_cast<int>(min(quad / QUADS, static_cast<long long>(a.rows - 1)));
  const int piece = quad % QUADS * 4 + threadIdx.x % 4;
  const long long query = query_of(a, row);
  const long long slot = static_cast<long long>(row) * a.slots;
  float log2_sum;
  const uint4 merged = merge_piece<T>(a.partial + slot * PIECES + piece, PIECES, a.partial_lse + slot,
                                      a.indices + query * a.slots, a.slots, log2_sum);
  const bool there = quad / QUADS < a.rows;
  if (a.suspect_count != nullptr) {  // the lanes of a row tell its first one
    const uint32_t bad = non_finite_halves<T>(merged.x) | non_finite_halves<T>(merged.y) | non_finite_halves<T>(merged.z) |
                         non_finite_halves<T>(merged.w);
    const unsigned lanes = __ballot_sync(ALL_LANES, there && bad != 0) >> lane_id();
    if (piece == 0 && (lanes & (2u << (PIECES - 1)) - 1) != 0) a.suspects[atomicAdd(a.suspect_count, 1)] = query;
  }
  if (!there) return;
  static_cast<uint4*>(a.out)[query * PIECES + piece] = merged;
  if (piece == 0) a.lse[query] = log2_sum * LN_2;
}

#define MERGE(NAME, T, D)                                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ MergeArguments arguments) { \
    merge<T, D>(arguments);                                                                                       \
  }
#define MERGE_DIMS(NAME, T) \
  MERGE(NAME##_d32, T, 32)  \
  MERGE(NAME##_d64, T, 64)  \
  MERGE(NAME##_d96, T, 96)  \
  MERGE(NAME##_d128, T, 128) \
  MERGE(NAME##_d256, T, 256)

MERGE_DIMS(merge_bf16, bf16)
MERGE_DIMS(merge_f16, f16)
