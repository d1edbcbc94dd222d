// Dense and sliding-window attention by mma.sync, forward (the scheme of FlashAttention-2, arXiv 2307.08691).
//
// A CTA of 4 warps takes a range of queries of one head and goes over the keys that some of them see, in chunks. There is room
// for one chunk of keys and one of values: values load while scores are computed, the next keys while values are summed.
// allow-spills sm80_dense_bf16_d128: a few words between tiles, none between matrix products
// allow-spills sm80_dense_f16_d128: a few words between tiles, none between matrix products
#include "common/range.cuh"
#include "common/shared.cuh"
#include "common/warp_attention.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;

struct DenseArguments {
  const void* q;  // [T, H, d]
  const void* k;  // [Tk, Hkv, d]
  const void* v;
  void* out;             // [T, H, d]
  float* lse;            // [T, H]
  const Range* ranges;   // of at most as many queries as a CTA has rows
  int causal, window;    // a query at t sees keys t − window + 1 … t; not causal: all keys
  float scale;           // of scores, times log2(e); positive
  int negate;            // scores are multiplied by −scale
};

// Grid: (ranges, H/Hkv, Hkv).
template <typename T, int D, int M, int K>
struct Dense {
  using Rows = Tile<D>;
  using Attention = WarpAttention<T, D, M, K>;
  static constexpr int WARP_ROWS = Attention::ROWS;

  const DenseArguments& a;

  // Late ranges see the most keys: they go first.
  __device__ __forceinline__ const Range& range_of_cta() const { return a.ranges[gridDim.x - 1 - blockIdx.x]; }

  // Row i of the range for this CTA's head, among all rows of q.
  static __device__ __forceinline__ long long query_of(const Range& range, int i) {
    const int heads = gridDim.y * gridDim.z, head = blockIdx.z * gridDim.y + blockIdx.y;
    return (static_cast<long long>(range.query_begin) + i) * heads + head;
  }

  // Copies keys (or values) of the range's sequence from key `first` on.
  __device__ __forceinline__ void load(uint32_t tile, const void* source, const Range& range, int first) const {
    const long long stride = gridDim.z * static_cast<long long>(D);
    const T* from = static_cast<const T*>(source) + (range.key_begin + first) * stride + blockIdx.z * D;
    Rows::template copy_rows<K, THREADS>(tile, from, stride, range.keys - first);
    ptx::copy_commit();
  }

  __device__ __forceinline__ void run() const {
    const uint32_t shared = static_cast<uint32_t>(__cvta_generic_to_shared(sharedMemory));
    const uint32_t keys = shared, values = keys + K * Rows::ROW_BYTES;
    const uint32_t queries = values + K * Rows::ROW_BYTES + warp_id() * WARP_ROWS * Rows::ROW_BYTES;
    const Range& range = range_of_cta();  // stays in memory: registers are scarce

    // Lanes have the rows of the warp; rows beyond the last query do as that one.
    const int row = min(warp_id() * WARP_ROWS + lane_id() % WARP_ROWS, range.queries - 1);
    Attention rows(a.scale, a.negate, a.window);
    rows.reset(a.causal ? max(0, min(range.first_position + row + 1, range.keys)) : range.keys);

    // The keys that some query of the range sees: from a multiple of K on.
    const int first_end = a.causal ? max(0, range.first_position + 1) : range.keys;
    const int last_end = a.causal ? min(range.first_position + range.queries, range.keys) : range.keys;
    const int begin = max(0, first_end - a.window) / K * K;
    if (begin < last_end) {
      const long long query = query_of(range, row);
      Rows::template gather_rows<WARP_ROWS>(queries, static_cast<const T*>(a.q), query * D);
      load(keys, a.k, range, begin);
    }
    for (int first = begin; first < last_end; first += K) {
      ptx::copy_wait<0>();
      __syncthreads();  // the keys are there; everyone is done with the last values
      load(values, a.v, range, first);
      const bool seen = rows.sees(first);
      typename Attention::Scores s;
      if (seen) rows.scores(s, queries, keys);
      ptx::copy_wait<0>();
      __syncthreads();  // the values are there; everyone is done with the keys
      if (first + K < last_end) load(keys, a.k, range, first + K);
      if (seen) rows.add_chunk(s, values, first);
    }
    store(rows);
  }

  __device__ __forceinline__ void store(Attention& rows) const {
    const Range range = range_of_cta();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float log2_sum = rows.finish(m, i);
        const int row = warp_id() * WARP_ROWS + 16 * m + lane_id() / 4 + 8 * i;
        const long long query = query_of(range, row);
#pragma unroll
        for (int j = 0; j < D / 8; j += 4) {
          uint32_t w[4];
#pragma unroll
          for (int u = 0; u < 4; u++) w[u] = pack<T>(rows.out[m][j + u][2 * i], rows.out[m][j + u][2 * i + 1]);
          transpose_quad(w);
          uint4* target = reinterpret_cast<uint4*>(static_cast<T*>(a.out) + query * D + 8 * j);
          if (row < range.queries) target[lane_id() % 4] = make_uint4(w[0], w[1], w[2], w[3]);
        }
        if (row < range.queries && lane_id() % 4 == 0) a.lse[query] = log2_sum * LN_2;
      }
  }
};

// 128 queries and 64 keys at once; of 256 channels half as many, for the sake of registers.
#define DENSE(NAME, T, D, M, K)                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) NAME(const __grid_constant__ DenseArguments arguments) { \
    Dense<T, D, M, K>{arguments}.run();                                                                             \
  }
#define DENSE_DIMS(NAME, T)         \
  DENSE(NAME##_d32, T, 32, 2, 64)   \
  DENSE(NAME##_d64, T, 64, 2, 64)   \
  DENSE(NAME##_d96, T, 96, 2, 64)   \
  DENSE(NAME##_d128, T, 128, 2, 64) \
  DENSE(NAME##_d256, T, 256, 1, 32)

DENSE_DIMS(sm80_dense_bf16, bf16)
DENSE_DIMS(sm80_dense_f16, f16)
