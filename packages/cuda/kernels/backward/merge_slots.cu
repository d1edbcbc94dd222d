// The gradient of queries from those of their slots: dq = Σ partial over the used slots and the chunks of their blocks, in
// order.
#include "common/elements.cuh"
#include "common/pairs.cuh"
#include "common/query_rows.cuh"
#include "common/warp.cuh"

constexpr int THREADS = 256;
constexpr int AT_ONCE = 8;  // loads on their way

// Rows as query_rows.cuh has them.
struct MergeArguments {
  const uint4* partial;  // [rows, slots, chunks, d], in accumulator order (merge_rows.cuh)
  const int* indices;    // [T, H, slots]
  void* dq;              // [T, H, d]
  int heads, slots, chunks, first_head, first_token, tokens;
  int rows;
};

// A quad of lanes takes 32 columns of a row.
template <typename T, int D>
__device__ __forceinline__ void merge_slots(const MergeArguments& a) {
  constexpr int PIECES = D / 8, QUADS = D / 32;
  const long long quad = static_cast<long long>(blockIdx.x) * (THREADS / 4) + threadIdx.x / 4;
  const int row = static_cast<int>(min(quad / QUADS, static_cast<long long>(a.rows - 1)));
  const int piece = quad % QUADS * 4 + threadIdx.x % 4;
  const long long query = query_of(a, row);
  const int* indices = a.indices + query * a.slots;
  const int parts = a.slots * a.chunks;
  const uint4* partial = a.partial + static_cast<long long>(row) * parts * PIECES + piece;
  float sum[8] = {};
  for (int first = 0; first < parts; first += AT_ONCE) {
    Packet<T, 8> pieces[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      const int part = first + u;
      const bool used = part < parts && __ldg(indices + part / a.chunks) >= 0;
      pieces[u].bits = used ? __ldcs(partial + static_cast<long long>(part) * PIECES) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      float x[8];
      unpack(x, pieces[u]);
#pragma unroll
      for (int c = 0; c < 8; c++) sum[c] += x[c];
    }
  }
  uint32_t words[4];
#pragma unroll
  for (int u = 0; u < 4; u++) words[u] = pack<T>(sum[2 * u], sum[2 * u + 1]);
  transpose_quad(words);  // word u of lane l holds columns 8(4i + u) + 2l + {0, 1}
  if (quad / QUADS < a.rows) {
    static_cast<uint4*>(a.dq)[query * PIECES + piece] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

#define MERGE_SLOTS(NAME, T, D)                                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ MergeArguments arguments) { \
    merge_slots<T, D>(arguments);                                                                                \
  }
#define MERGE_SLOTS_DIMS(NAME, T) \
  MERGE_SLOTS(NAME##_d32, T, 32)  \
  MERGE_SLOTS(NAME##_d64, T, 64)  \
  MERGE_SLOTS(NAME##_d96, T, 96)  \
  MERGE_SLOTS(NAME##_d128, T, 128)

MERGE_SLOTS_DIMS(merge_slots_bf16, bf16)
MERGE_SLOTS_DIMS(merge_slots_f16, f16)
