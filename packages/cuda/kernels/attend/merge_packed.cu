// Merging packed partial outputs of routed attention: each query's row from those of its slots.
#include <cmath>

#include "common/packed_rows.cuh"
#include "common/query_rows.cuh"
#include "common/softmax.cuh"
#include "ptx/exp2.cuh"

constexpr int THREADS = 256;
constexpr int AT_ONCE = 4;  // rows on their way

// Rows as query_rows.cuh has them.
struct MergeArguments {
  const void* partial;      // [rows, slots], packed rows of d
  const PackedNote* notes;  // [rows, slots]
  const int* indices;       // [T, H, slots]
  void* out;                // [T, H, d]
  float* lse;               // [T, H], natural
  int* suspect_count;       // zero
  int* suspects;            // rows token · H + head that came out not finite
  int heads, slots, first_head, first_token, tokens;
  int rows;
};

// A quad of lanes takes a row.
template <int D>
__device__ __forceinline__ void merge(const MergeArguments& a) {
  constexpr int PARTS = D / 64;
  const int lane = threadIdx.x % 4, thread_row = blockIdx.x * (THREADS / 4) + threadIdx.x / 4;
  const int row = min(thread_row, a.rows - 1);
  const long long query = query_of(a, row);
  const long long slot = static_cast<long long>(row) * a.slots;
  const int* indices = a.indices + query * a.slots;

  float max = -INFINITY;
  for (int i = 0; i < a.slots; i++) {
    if (__ldg(indices + i) >= 0) max = fmaxf(max, __ldg(&a.notes[slot + i].lse));
  }
  const float shift = shift_of(max);
  float sum = 0;
  packed::Sum out[PARTS];
  for (int first = 0; first < a.slots; first += AT_ONCE) {
    packed::Row<D> rows[AT_ONCE];
    uint2 notes[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      const bool used = first + u < a.slots && __ldg(indices + first + u) >= 0;
      notes[u] = make_uint2(__float_as_uint(-INFINITY), 0);
      if (!used) continue;
      notes[u] = __ldg(reinterpret_cast<const uint2*>(a.notes) + slot + first + u);
      rows[u].load(a.partial, slot + first + u);
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      const float weight = ptx::exp2_approx(__uint_as_float(notes[u].x) - shift);
      sum += weight;
#pragma unroll
      for (int part = 0; part < PARTS; part++) out[part].add(rows[u], part, weight, packed::step_of(notes[u].y, part));
    }
  }

  const float factor = inverse_sum(sum);
  uint32_t bad = 0;
  uint4 pieces[2 * PARTS];
#pragma unroll
  for (int i = 0; i < 2 * PARTS; i++) {
    const uint4 piece = pieces[i] = out[i / 2].piece(i % 2, factor);
    bad |= non_finite_halves<bf16>(piece.x) | non_finite_halves<bf16>(piece.y) | non_finite_halves<bf16>(piece.z) |
           non_finite_halves<bf16>(piece.w);
  }
  const unsigned lanes = __ballot_sync(ALL_LANES, bad != 0) >> (lane_id() - lane) & 15;
  if (thread_row >= a.rows) return;
  if (lane == 0 && lanes != 0) a.suspects[atomicAdd(a.suspect_count, 1)] = query;
#pragma unroll
  for (int i = 0; i < 2 * PARTS; i++) static_cast<uint4*>(a.out)[query * (D / 8) + 4 * i + lane] = pieces[i];
  if (lane == 0) a.lse[query] = log_sum(max, sum) * LN_2;
}

#define MERGE(NAME, D)                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) NAME(const __grid_constant__ MergeArguments arguments) { \
    merge<D>(arguments);                                                                                             \
  }

MERGE(merge_packed_bf16_d64, 64)
MERGE(merge_packed_bf16_d128, 128)
