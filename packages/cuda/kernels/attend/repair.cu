// Second look at rows of routed attention that came out not finite. In a matrix product, a masked key's weight of zero times
// a value that is not finite is a NaN in rows that do not see the key; here every key that a row does not see stays untouched.
// And sm90_attend.cu makes a NaN of rows whose scores lie too far apart for it.
// One kernel for every architecture; hardly ever has it anything to do.
// allow-spills repair_bf16_d128: hardly ever runs
// allow-spills repair_f16_d128: hardly ever runs
#include "common/range.cuh"
#include "common/row_attention.cuh"
#include "common/shared.cuh"

constexpr int WARPS = 4;

struct RepairArguments {
  const void* q;        // [T, H, d]
  const void* k;        // [Tk, Hkv, d]
  const void* v;
  const int* indices;   // [T, H, slots]
  const Range* ranges;
  const int* suspect_count;
  const int* suspects;  // rows token * H + h
  void* out;            // [T, H, d]
  float* lse;           // [T, H], natural
  int range_count, heads, group, slots, block_size, causal;
  float scale;
};

template <typename T, int D>
__device__ __forceinline__ void repair(const RepairArguments& a) {
  static_assert(D <= SLAB, "one slab");
  constexpr int V = PER_16_BYTES<T>;
  float* query = reinterpret_cast<float*>(sharedMemory) + warp_id() * D;
  for (int i = blockIdx.x * WARPS + warp_id(); i < *a.suspect_count; i += gridDim.x * WARPS) {
    const long long row = a.suspects[i];
    const int token = row / a.heads, head = row % a.heads;
    int low = 0, high = a.range_count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (a.ranges[middle].query_begin <= token) low = middle; else high = middle - 1;
    }
    const Range range = a.ranges[low];
    const int position = range.first_position + token - range.query_begin;
    const int limit = a.causal ? min(range.keys, position + 1) : range.keys;
    const long long step = static_cast<long long>(a.heads / a.group) * D;
    const long long first_key = range.key_begin * step + head / a.group * D;
    __syncwarp();
    for (int c = lane_id(); c < D; c += WARP) query[c] = to_float(static_cast<const T*>(a.q)[row * D + c]);
    __syncwarp();

    RowAttention<T, V> attention;
    for (int slot = 0; slot < a.slots; slot++) {
      const int block = a.indices[row * a.slots + slot];
      if (block < 0) continue;
      const int begin = block * a.block_size;
      const long long at = first_key + begin * step;
      attention.add(static_cast<const T*>(a.k) + at, static_cast<const T*>(a.v) + at, step,
                    min(a.block_size, limit - begin), query, a.scale * LOG2_E, D, 0);
    }
    attention.merge_groups();
    if (lane_id() < KEY_LANES) {
      const float inverse = inverse_sum(attention.sum);
#pragma unroll
      for (int j = 0; j < RowAttention<T, V>::PACKETS; j++) {
        const int column = attention.column(0, j);
        if (column >= D) break;
#pragma unroll
        for (int c = 0; c < V; c++) attention.out[j][c] *= inverse;
        store(static_cast<T*>(a.out) + row * D + column, attention.out[j]);
      }
      if (lane_id() == 0) a.lse[row] = log_sum(attention.max, attention.sum) * LN_2;
    }
  }
}

#define REPAIR(NAME, T, D) \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP) NAME(const __grid_constant__ RepairArguments a) { repair<T, D>(a); }

REPAIR(repair_bf16_d64, bf16, 64)
REPAIR(repair_bf16_d128, bf16, 128)
REPAIR(repair_f16_d64, f16, 64)
REPAIR(repair_f16_d128, f16, 128)
