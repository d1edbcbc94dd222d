// The gradient of queries of dense and sliding-window attention by mma.sync: a CTA keeps dq of a range of queries of one
// head and goes over the keys that some of them see, in chunks: one loads while the other is worked on.
#include "common/range.cuh"
#include "common/shared.cuh"
#include "common/tile.cuh"
#include "common/warp_attention.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

struct DenseArguments {
  const void* q;  // [T, H, d]
  const void* d_out;
  const void* k;  // [Tk, Hkv, d]
  const void* v;
  const float2* terms;  // [H, T], see row_terms.cu
  const Range* ranges;  // of at most 16 queries a warp
  void* dq;
  int tokens;
  int causal, window;  // a query at t sees keys t − window + 1 … t; not causal: all keys
  float scale;
};

// A warp has 16 queries. Grid: (ranges, H/Hkv, Hkv).
template <typename T, int D, int K>
struct QueryGradients {
  using Rows = Tile<D>;
  using Products = float[K / 8][4];
  static constexpr int TILE_BYTES = K * Rows::ROW_BYTES;

  const DenseArguments& a;
  uint32_t q[D / 16][4], d_out[D / 16][4];  // as first operands
  float dq[D / 8][4];                       // without scale
  // Of rows lane / 4 and 8 below:
  float2 terms[2];
  int end[2];  // the row sees keys end − window … end − 1

  __device__ __forceinline__ explicit QueryGradients(const DenseArguments& arguments) : a(arguments) {}

  static __device__ __forceinline__ int head() { return blockIdx.z * gridDim.y + blockIdx.y; }
  static __device__ __forceinline__ int own_query(int i) { return 16 * warp_id() + lane_id() / 4 + 8 * i; }
  static __device__ __forceinline__ long long element(const Range& range, int query) {
    return ((static_cast<long long>(range.query_begin) + query) * gridDim.y * gridDim.z + head()) * D;
  }

  // Reads the warp's rows; those beyond the last query see nothing.
  __device__ __forceinline__ void load_rows(const Range& range) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int query = min(own_query(i), range.queries - 1);
      terms[i] = a.terms[static_cast<long long>(head()) * a.tokens + range.query_begin + query];
      end[i] = a.causal ? max(0, min(range.keys, range.first_position + query + 1)) : range.keys;
      if (own_query(i) >= range.queries) end[i] = 0;
      const long long from = element(range, query) + lane_id() % 4 * 2;
#pragma unroll
      for (int kk = 0; kk < D / 16; kk++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const long long at = from + 16 * kk + 8 * half;
          q[kk][i + 2 * half] = *reinterpret_cast<const uint32_t*>(static_cast<const T*>(a.q) + at);
          d_out[kk][i + 2 * half] = *reinterpret_cast<const uint32_t*>(static_cast<const T*>(a.d_out) + at);
        }
    }
#pragma unroll
    for (int j = 0; j < D / 8; j++) dq[j][0] = dq[j][1] = dq[j][2] = dq[j][3] = 0;
  }

  // Copies keys, and values behind them, of the range's sequence from key `first` on.
  __device__ __forceinline__ void load(uint32_t tile, const Range& range, int first) const {
    const long long stride = gridDim.z * static_cast<long long>(D);
    const long long from = (static_cast<long long>(range.key_begin) + first) * stride + blockIdx.z * D;
    Rows::template copy_rows<K, THREADS>(tile, static_cast<const T*>(a.k) + from, stride, range.keys - first);
    Rows::template copy_rows<K, THREADS>(tile + TILE_BYTES, static_cast<const T*>(a.v) + from, stride, range.keys - first);
    ptx::copy_commit();
  }

  __device__ __forceinline__ void run() {
    const uint32_t tiles = static_cast<uint32_t>(__cvta_generic_to_shared(sharedMemory));
    const Range& range = a.ranges[gridDim.x - 1 - blockIdx.x];  // late ranges see the most keys: they go first
    const int first_end = a.causal ? max(0, range.first_position + 1) : range.keys;
    const int last_end = a.causal ? min(range.first_position + range.queries, range.keys) : range.keys;
    const int begin = max(0, first_end - a.window) / K * K;
    if (begin < last_end) load(tiles, range, begin);
    load_rows(range);
    for (int first = begin, turn = 0; first < last_end; first += K, turn ^= 1) {
      ptx::copy_wait<0>();
      __syncthreads();  // the chunk is there; everyone is done with the one before
      if (first + K < last_end) load(tiles + (turn ^ 1) * 2 * TILE_BYTES, range, first + K);
      add_chunk(tiles + turn * 2 * TILE_BYTES, first, range.keys);
    }
    store(range);
  }

  __device__ __forceinline__ bool key_seen(int i, int key) const {
    return static_cast<unsigned>(end[i] - 1 - key) < static_cast<unsigned>(a.window);
  }

  __device__ __forceinline__ void add_chunk(uint32_t keys, int first, int all_keys) {
    bool seen = false, sees_all = true, hidden = false;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      seen |= end[i] > first && end[i] - a.window < first + K;
      const bool whole = end[i] - a.window <= first;
      sees_all &= end[i] >= first + K && whole;
      hidden |= end[i] < min(first + K, all_keys) || !whole;
    }
    if (!__any_sync(ALL_LANES, seen)) return;
    Products s, dp;
    multiply(s, q, keys);
    multiply(dp, d_out, keys + TILE_BYTES);
    const float factor = a.scale * LOG2_E;
#pragma unroll
    for (int j = 0; j < K / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        dp[j][e] = ptx::exp2_approx(fmaf(s[j][e], factor, -terms[e / 2].x)) * (dp[j][e] - terms[e / 2].y);
      }
    if (!__all_sync(ALL_LANES, sees_all)) {
      // Weights of keys that a row does not see are replaced, not multiplied: a NaN goes no further.
#pragma unroll
      for (int j = 0; j < K / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          if (!key_seen(e / 2, first + 8 * j + lane_id() % 4 * 2 + e % 2)) dp[j][e] = 0;
        }
    }
    if (__any_sync(ALL_LANES, hidden)) accumulate<true>(dp, keys);
    else accumulate<false>(dp, keys);
  }

  // The products of the warp's rows with those of a tile.
  static __device__ __forceinline__ void multiply(Products& s, const uint32_t (&rows)[D / 16][4], uint32_t tile) {
    const int lane = anew(lane_id()), row = lane % 8 + lane / 16 * 8, piece = Rows::swizzle(row) ^ (lane / 8 % 2);
#pragma unroll
    for (int j = 0; j < K / 8; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++)
#pragma unroll
      for (int j = 0; j < K / 16; j++) {
        uint32_t b[4];
        ptx::ldmatrix_x4(b, tile + (row + 16 * j) * Rows::ROW_BYTES + ((2 * kk ^ piece) << 4));
        ptx::mma_m16n8k16(s[2 * j], rows[kk], b[0], b[1], T{});
        ptx::mma_m16n8k16(s[2 * j + 1], rows[kk], b[2], b[3], T{});
      }
  }

  // dq += ds · keys. `FiniteOnly` takes elements that are not finite as zeros: of pairs that they touch, ds is a NaN
  // already.
  template <bool FiniteOnly>
  __device__ __forceinline__ void accumulate(const Products& ds, uint32_t keys) {
    const int lane = anew(lane_id()), row = lane % 16, piece = Rows::swizzle(row) ^ (lane / 16);
#pragma unroll
    for (int kk = 0; kk < K / 16; kk++) {
      uint32_t weights[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float* pair = &ds[2 * kk + i / 2][i % 2 * 2];
        weights[i] = pack<T>(pair[0], pair[1]);
      }
#pragma unroll
      for (int j = 0; j < D / 16; j++) {
        uint32_t b[4];
        ptx::ldmatrix_x4_transposed(b, keys + (row + 16 * kk) * Rows::ROW_BYTES + ((2 * j ^ piece) << 4));
        if (FiniteOnly) {
#pragma unroll
          for (int i = 0; i < 4; i++) b[i] &= ~non_finite_halves<T>(b[i]);
        }
        ptx::mma_m16n8k16(dq[2 * j], weights, b[0], b[1], T{});
        ptx::mma_m16n8k16(dq[2 * j + 1], weights, b[2], b[3], T{});
      }
    }
  }

  __device__ __forceinline__ void store(const Range& range) const {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int query = own_query(i);
#pragma unroll
      for (int j = 0; j < D / 8; j += 4) {
        uint32_t w[4];
#pragma unroll
        for (int u = 0; u < 4; u++) w[u] = pack<T>(dq[j + u][2 * i] * a.scale, dq[j + u][2 * i + 1] * a.scale);
        transpose_quad(w);
        uint4* target = reinterpret_cast<uint4*>(static_cast<T*>(a.dq) + element(range, query) + 8 * j);
        if (query < range.queries) target[lane_id() % 4] = make_uint4(w[0], w[1], w[2], w[3]);
      }
    }
  }
};

#define DENSE_QUERY_GRADIENTS(NAME, T, D, K)                                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) NAME(const __grid_constant__ DenseArguments arguments) { \
    QueryGradients<T, D, K>(arguments).run();                                                                       \
  }
#define DENSE_QUERY_GRADIENTS_DIMS(NAME, T)    \
  DENSE_QUERY_GRADIENTS(NAME##_d32, T, 32, 64) \
  DENSE_QUERY_GRADIENTS(NAME##_d64, T, 64, 64) \
  DENSE_QUERY_GRADIENTS(NAME##_d96, T, 96, 64) \
  DENSE_QUERY_GRADIENTS(NAME##_d128, T, 128, 64)

DENSE_QUERY_GRADIENTS_DIMS(sm80_dense_query_gradients_bf16, bf16)
DENSE_QUERY_GRADIENTS_DIMS(sm80_dense_query_gradients_f16, f16)
