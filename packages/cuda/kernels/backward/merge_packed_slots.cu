// The gradient of queries from packed ones of their slots: dq = Σ partial over the used slots and the chunks of their blocks, in
// order.
#include "common/packed_rows.cuh"
#include "common/query_rows.cuh"

constexpr int THREADS = 256;
constexpr int AT_ONCE = 4;  // rows on their way

// Rows as query_rows.cuh has them.
struct MergeArguments {
  const void* partial;    // [rows, slots, chunks], packed rows of d
  const uint32_t* steps;  // [rows, slots, chunks]
  const int* indices;     // [T, H, slots]
  void* dq;               // [T, H, d]
  int heads, slots, chunks, first_head, first_token, tokens;
  int rows;
};

// A quad of lanes takes a row.
template <int D>
__device__ __forceinline__ void merge_slots(const MergeArguments& a) {
  constexpr int PARTS = D / 64;
  const int lane = threadIdx.x % 4, thread_row = blockIdx.x * (THREADS / 4) + threadIdx.x / 4;
  const int row = min(thread_row, a.rows - 1);
  const long long query = query_of(a, row);
  const int* indices = a.indices + query * a.slots;
  const int parts = a.slots * a.chunks;
  const long long first_part = static_cast<long long>(row) * parts;

  packed::Sum sum[PARTS];
  for (int first = 0; first < parts; first += AT_ONCE) {
    packed::Row<D> rows[AT_ONCE];
    uint32_t steps[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      const int part = first + u;
      steps[u] = 0;
      if (part >= parts || __ldg(indices + part / a.chunks) < 0) continue;
      steps[u] = __ldg(a.steps + first_part + part);
      rows[u].load(a.partial, first_part + part);
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
#pragma unroll
      for (int i = 0; i < PARTS; i++) sum[i].add(rows[u], i, 1.0f, packed::step_of(steps[u], i));
    }
  }

#pragma unroll
  for (int i = 0; i < 2 * PARTS; i++) {
    const uint4 piece = sum[i / 2].piece(i % 2, 1.0f);
    if (thread_row < a.rows) static_cast<uint4*>(a.dq)[query * (D / 8) + 4 * i + lane] = piece;
  }
}

#define MERGE(NAME, D)                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) NAME(const __grid_constant__ MergeArguments arguments) { \
    merge_slots<D>(arguments);                                                                                       \
  }

MERGE(merge_packed_slots_bf16_d64, 64)
MERGE(merge_packed_slots_bf16_d128, 128)
