// Gradients of a chunk of keys and values by mma.sync, over rows of queries that pass by, and the chunk's part of those
// rows' dq.
//
// A warp owns 16 keys: their scores with the rows of a tile, sᵀ = k·qᵀ, lie in its registers as the products with q and
// dOut take them. Tiles of rows pass by through two places in shared memory: one loads while the other is worked on. Values
// stay in registers, as the products take them.
#pragma once
#include "common/elements.cuh"
#include "common/pairs.cuh"
#include "common/shared.cuh"
#include "common/softmax.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "common/warp_attention.cuh"
#include "ptx/exp2.cuh"
#include "ptx/mma.cuh"

// A query of a head.
struct QueryRow {
  int token;  // of the batch
  int head;
  int end;   // it sees the chunk's keys from end − window to end − 1
  int slot;  // where its part of dq goes
};

// The queries of a launch.
struct Queries {
  const void* q;        // [T, H, d]
  const void* d_out;    // [T, H, d]
  const float2* terms;  // [H, T], see row_terms.cu
  int tokens, heads;    // T, H
  float scale;
  int window;
};

// A chunk of keys.
struct KeyChunk {
  const void* k;        // the first key
  const void* v;
  long long key_stride;  // elements from one key to the next
  int keys;              // of at most 16 a warp; may be none, or negative
};

// `Source`: where rows come from. Lanes ask it for rows of their own: `int fetch(int row)` begins to read, `QueryRow
// row(int fetched)` says what was read; rows of a lane only grow.
template <typename T, int D, int Warps, int R>
struct KeyGradients {
  using Rows = Tile<D>;
  using Weights = Tile<R>;  // of ds: a row a key
  static constexpr int KEYS = 16 * Warps, THREADS = WARP * Warps;
  static constexpr int WARP_ROWS = R / Warps;  // that a warp gathers
  static constexpr int TILE_BYTES = R * Rows::ROW_BYTES, KEY_BYTES = KEYS * Rows::ROW_BYTES;

  // What is to be known of the rows of tiles: of the current one, of one before and of two ahead.
  static constexpr int RING = 4;
  struct Notes {
    alignas(16) float2 terms[RING][R];
    int ends[RING][R];
    int slots[RING][R];
  };

  const Queries& a;
  Notes& notes;
  const uint32_t keys_tile, weights_tile, tiles;  // addresses in shared memory
  uint32_t v[D / 16][4];                          // as first operands
  float dk[D / 8][4];                             // without scale
  float dv[D / 8][4];

  __device__ __forceinline__ KeyGradients(const Queries& queries, Notes& notes)
      : a(queries),
        notes(notes),
        keys_tile(static_cast<uint32_t>(__cvta_generic_to_shared(sharedMemory))),
        weights_tile(keys_tile + KEY_BYTES),
        tiles(weights_tile + KEYS * Weights::ROW_BYTES) {}

  // The first of the lane's two keys; the other is 8 behind.
  static __device__ __forceinline__ int own_key() {
    const int thread = anew(threadIdx.x);
    return 16 * (thread / WARP) + thread % WARP / 4;
  }

  // Where a tile's queries lie; its gradients of outputs lie behind them.
  __device__ __forceinline__ uint32_t tile_of(int number) const { return tiles + number % 2 * 2 * TILE_BYTES; }

  // Goes through `rows` rows of the source. partial: for dq, rows of d elements in accumulator order; null: not wanted.
  // All are done with shared memory before.
  template <typename Source>
  __device__ __forceinline__ void run(const KeyChunk& chunk, Source& source, int rows, bool for_keys, void* partial) {
    Rows::template copy_rows<KEYS, THREADS>(keys_tile, static_cast<const T*>(chunk.k), chunk.key_stride, chunk.keys);
    ptx::copy_commit();
#pragma unroll 1
    for (int i = 0; i < 2; i++) {
      const int row = i * R + row_of_lane();
      const int fetched = lane_id() < WARP_ROWS && row < rows ? source.fetch(row) : 0;
      const float2 terms = bring(i, source, fetched, row < rows);
      if (lane_id() < WARP_ROWS) notes.terms[i][row_of_lane()] = terms;
    }
    load_values(chunk);
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) dk[j][e] = dv[j][e] = 0;

    for (int tile = 0; tile * R < rows; tile++) {
      ptx::copy_wait<1>();
      __syncthreads();  // the tile is there; everyone is done with the weights of the one before
      const int ahead = (tile + 2) * R + row_of_lane();
      const int fetched = lane_id() < WARP_ROWS && ahead < rows ? source.fetch(ahead) : 0;
      const bool hidden = add_tile(tile, chunk.keys, for_keys);
      __syncthreads();  // the weights are there; everyone is done with the tile
      const float2 terms = bring(tile + 2, source, fetched, ahead < rows);
      if (partial != nullptr) {
        if (hidden) slot_gradients<true>(tile, static_cast<uint4*>(partial));
        else slot_gradients<false>(tile, static_cast<uint4*>(partial));
      }
      if (lane_id() < WARP_ROWS) notes.terms[(tile + 2) % RING][row_of_lane()] = terms;
    }
    ptx::copy_wait<0>();
  }

  // Lanes below WARP_ROWS see to a row each.
  static __device__ __forceinline__ int row_of_lane() {
    const int thread = anew(threadIdx.x);
    return thread / WARP * WARP_ROWS + thread % WARP % WARP_ROWS;
  }

  // Begins to copy this warp's rows of a tile and notes what is known of them. Returns the terms of the lane's row.
  template <typename Source>
  __device__ __forceinline__ float2 bring(int tile, Source& source, int fetched, bool there) const {
    long long from = -1;
    float2 terms = make_float2(0.0f, 0.0f);
    if (lane_id() < WARP_ROWS) {
      QueryRow row = {0, 0, 0, -1};
      if (there) {
        row = source.row(fetched);
        from = (static_cast<long long>(row.token) * a.heads + row.head) * D;
        terms = a.terms[static_cast<long long>(row.head) * a.tokens + row.token];
      }
      notes.ends[tile % RING][row_of_lane()] = row.end;
      notes.slots[tile % RING][row_of_lane()] = row.slot;
    }
    gather(tile_of(tile), from);
    ptx::copy_commit();
    return terms;
  }

  // Copies the warp's rows of q and dOut, from the elements that its lanes hold; negative: the row becomes zeros.
  __device__ __forceinline__ void gather(uint32_t tile, long long element) const {
#pragma unroll 1  // registers are scarce
    for (int i = 0, lane = anew(lane_id()); i < WARP_ROWS; i += WARP / Rows::ABREAST) {
      const int row = i + lane / Rows::ABREAST;
      const long long from = __shfl_sync(ALL_LANES, element, row);
      if (row >= WARP_ROWS) continue;
#pragma unroll
      for (int piece = lane % Rows::ABREAST; piece < Rows::PIECES; piece += Rows::ABREAST) {
        const uint32_t target = tile + Rows::offset(warp_id() * WARP_ROWS + row, piece);
        const long long at = max(from, 0ll) + piece * 8;
        ptx::copy_16_or_zero(target, static_cast<const T*>(a.q) + at, from >= 0);
        ptx::copy_16_or_zero(target + TILE_BYTES, static_cast<const T*>(a.d_out) + at, from >= 0);
      }
    }
  }

  __device__ __forceinline__ void load_values(const KeyChunk& chunk) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int key = own_key() + i % 2 * 8;
      const T* from = static_cast<const T*>(chunk.v) + key * chunk.key_stride + i / 2 * 8 + lane_id() % 4 * 2;
#pragma unroll
      for (int kk = 0; kk < D / 16; kk++) {
        v[kk][i] = key < chunk.keys ? *reinterpret_cast<const uint32_t*>(from + 16 * kk) : 0;
      }
    }
  }

  __device__ __forceinline__ bool key_seen(int end, int key) const {
    return static_cast<unsigned>(end - 1 - key) < static_cast<unsigned>(a.window);
  }

  // One tile's part of dk and dv; leaves ds to all. Returns whether some of its rows does not see some of the keys.
  __device__ __forceinline__ bool add_tile(int tile, int keys, bool for_keys) {
    const int ring = tile % RING;
    const int first_key = 16 * warp_id();
    bool seen = false, sees_all = true, hidden = false;  // seen: any of the warp's keys
#pragma unroll
    for (int i = 0; i < R / WARP; i++) {
      const int end = notes.ends[ring][WARP * i + lane_id()];
      const bool whole = end - a.window <= 0;
      seen |= end > first_key && end - a.window < first_key + 16;
      sees_all &= end >= KEYS && whole;
      hidden |= notes.slots[ring][WARP * i + lane_id()] >= 0 && (end < keys || !whole);
    }
    sees_all = __all_sync(ALL_LANES, sees_all);
    hidden = __any_sync(ALL_LANES, hidden);

    uint32_t words[R / 8][2];
    if (!__any_sync(ALL_LANES, seen)) {
#pragma unroll
      for (int j = 0; j < R / 8; j++) words[j][0] = words[j][1] = 0;
      leave_weights(words);
      return hidden;
    }
    const uint32_t queries = tile_of(tile), gradients = queries + TILE_BYTES;
    float p[R / 8][4], ds[R / 8][4];
    products(p, ds, queries, gradients);
    weigh(p, ds, ring);
    if (!sees_all) mask(p, ds, ring);
    using Check = WarpAttention<T, D, 1, R>;
    const bool finite = !hidden || (Check::all_finite(queries) && Check::all_finite(gradients));
    if (for_keys) {
      pack_weights(words, p);
      if (finite) {
        accumulate<false>(dv, words, gradients);
      } else {
        accumulate<true>(dv, words, gradients);
        add_non_finite(gradients, ring);
      }
    }
    pack_weights(words, ds);
    leave_weights(words);
    if (for_keys) {
      if (finite) accumulate<false>(dk, words, queries);
      else accumulate<true>(dk, words, queries);
    }
    return hidden;
  }

  // s = k·qᵀ and dp = v·dOutᵀ: rows are the warp's keys, columns the tile's rows.
  __device__ __forceinline__ void products(float (&s)[R / 8][4], float (&dp)[R / 8][4], uint32_t queries,
                                           uint32_t gradients) const {
    const int thread = anew(threadIdx.x), lane = thread % WARP;
    const int key_row = thread / WARP * 16 + lane % 16, row = lane % 8 + lane / 16 * 8;
    const int key_piece = Rows::swizzle(key_row) ^ (lane / 16), piece = Rows::swizzle(row) ^ (lane / 8 % 2);
#pragma unroll
    for (int j = 0; j < R / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) s[j][e] = dp[j][e] = 0;
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
      uint32_t k[4];
      ptx::ldmatrix_x4(k, keys_tile + key_row * Rows::ROW_BYTES + ((2 * kk ^ key_piece) << 4));
#pragma unroll
      for (int j = 0; j < R / 16; j++) {
        uint32_t b[4];
        const uint32_t at = (row + 16 * j) * Rows::ROW_BYTES + ((2 * kk ^ piece) << 4);
        ptx::ldmatrix_x4(b, queries + at);
        ptx::mma_m16n8k16(s[2 * j], k, b[0], b[1], T{});
        ptx::mma_m16n8k16(s[2 * j + 1], k, b[2], b[3], T{});
        ptx::ldmatrix_x4(b, gradients + at);
        ptx::mma_m16n8k16(dp[2 * j], v[kk], b[0], b[1], T{});
        ptx::mma_m16n8k16(dp[2 * j + 1], v[kk], b[2], b[3], T{});
      }
    }
  }

  // Scores become p, products with dOut become ds.
  __device__ __forceinline__ void weigh(float (&s)[R / 8][4], float (&dp)[R / 8][4], int ring) const {
    const float factor = a.scale * LOG2_E;
    const int row = anew(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int j = 0; j < R / 8; j++) {
      const float4 terms = *reinterpret_cast<const float4*>(&notes.terms[ring][8 * j + row]);
#pragma unroll
      for (int e = 0; e < 4; e++) {
        s[j][e] = ptx::exp2_approx(fmaf(s[j][e], factor, -(e % 2 ? terms.z : terms.x)));
        dp[j][e] = s[j][e] * (dp[j][e] - (e % 2 ? terms.w : terms.y));
      }
    }
  }

  // Weights of keys that a row does not see are replaced, not multiplied: a NaN goes no further.
  __device__ __forceinline__ void mask(float (&p)[R / 8][4], float (&ds)[R / 8][4], int ring) const {
    const int key = own_key(), row = anew(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int j = 0; j < R / 8; j++) {
      const int2 ends = *reinterpret_cast<const int2*>(&notes.ends[ring][8 * j + row]);
#pragma unroll
      for (int e = 0; e < 4; e++) {
        if (!key_seen(e % 2 ? ends.y : ends.x, key + e / 2 * 8)) p[j][e] = ds[j][e] = 0;
      }
    }
  }

  static __device__ __forceinline__ void pack_weights(uint32_t (&words)[R / 8][2], const float (&weights)[R / 8][4]) {
#pragma unroll
    for (int j = 0; j < R / 8; j++)
#pragma unroll
      for (int i = 0; i < 2; i++) words[j][i] = pack<T>(weights[j][2 * i], weights[j][2 * i + 1]);
  }

  // Writes the warp's part of ds to shared memory.
  static __device__ __forceinline__ void leave_weights(const uint32_t (&words)[R / 8][2]) {
    const int key = own_key();
#pragma unroll
    for (int j = 0; j < R / 8; j++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int at = KEY_BYTES + Weights::offset(key + 8 * i, j) + lane_id() % 4 * 4;
        *reinterpret_cast<uint32_t*>(sharedMemory + at) = words[j][i];
      }
  }

  // sum += weights · rows of a tile. `FiniteOnly` takes elements that are not finite as zeros.
  template <bool FiniteOnly>
  static __device__ __forceinline__ void accumulate(float (&sum)[D / 8][4], const uint32_t (&words)[R / 8][2],
                                                    uint32_t tile) {
    const int lane = anew(lane_id()), row = lane % 16, piece = Rows::swizzle(row) ^ (lane / 16);
#pragma unroll
    for (int kk = 0; kk < R / 16; kk++) {
      const uint32_t weights[4] = {words[2 * kk][0], words[2 * kk][1], words[2 * kk + 1][0], words[2 * kk + 1][1]};
#pragma unroll
      for (int j = 0; j < D / 16; j++) {
        uint32_t b[4];
        ptx::ldmatrix_x4_transposed(b, tile + (row + 16 * kk) * Rows::ROW_BYTES + ((2 * j ^ piece) << 4));
        if (FiniteOnly) {
#pragma unroll
          for (int i = 0; i < 4; i++) b[i] &= ~non_finite_halves<T>(b[i]);
        }
        ptx::mma_m16n8k16(sum[2 * j], weights, b[0], b[1], T{});
        ptx::mma_m16n8k16(sum[2 * j + 1], weights, b[2], b[3], T{});
      }
    }
  }

  // Adds gradients of outputs that are not finite to dv of the keys that their rows see, and of no others. Elements of q or
  // k that are not finite need no such care: of pairs that they touch, ds is a NaN already.
  __device__ __forceinline__ void add_non_finite(uint32_t gradients, int ring) {
    const int key = own_key();
#pragma unroll 1
    for (int row = 0; row < R; row++) {
      const int end = notes.ends[ring][row];
#pragma unroll
      for (int j = 0; j < D / 8; j += 4) {
        uint32_t b[4];  // the lane's two columns of this row, of columns 8j, 8(j + 1) …
        ptx::ldmatrix_x4(b, gradients + Rows::offset(row, j + lane_id() / 8));
#pragma unroll
        for (int u = 0; u < 4; u++) {
          float x[2];
          unpack_pair<T>(x, b[u] & non_finite_halves<T>(b[u]));
#pragma unroll
          for (int e = 0; e < 4; e++) {
            if (key_seen(end, key + e / 2 * 8)) dv[j + u][e] += x[e % 2];
          }
        }
      }
    }
  }

  // dq = scale · ds · k of a tile's rows: the warps share out pieces of 16 rows and 32 columns.
  template <bool FiniteOnly>
  __device__ __forceinline__ void slot_gradients(int tile, uint4* partial) const {
    const int thread = anew(threadIdx.x), lane = thread % WARP;
    const int ds_row = lane % 8 + lane / 16 * 8, key_row = lane % 16;
#pragma unroll 1
    for (int part = thread / WARP; part < R / 16 * (D / 32); part += Warps) {
      const int rows = part % (R / 16), columns = part / (R / 16);
      float dq[4][4] = {};
#pragma unroll
      for (int kk = 0; kk < KEYS / 16; kk++) {
        uint32_t ds[4];
        ptx::ldmatrix_x4_transposed(ds, weights_tile + Weights::offset(ds_row + 16 * kk, 2 * rows + lane / 8 % 2));
#pragma unroll
        for (int j = 0; j < 2; j++) {
          uint32_t b[4];
          ptx::ldmatrix_x4_transposed(b, keys_tile + Rows::offset(key_row + 16 * kk, 4 * columns + 2 * j + lane / 16));
          if (FiniteOnly) {
#pragma unroll
            for (int i = 0; i < 4; i++) b[i] &= ~non_finite_halves<T>(b[i]);
          }
          ptx::mma_m16n8k16(dq[2 * j], ds, b[0], b[1], T{});
          ptx::mma_m16n8k16(dq[2 * j + 1], ds, b[2], b[3], T{});
        }
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int slot = notes.slots[tile % RING][16 * rows + lane / 4 + 8 * i];
        uint32_t w[4];
#pragma unroll
        for (int u = 0; u < 4; u++) w[u] = pack<T>(dq[u][2 * i] * a.scale, dq[u][2 * i + 1] * a.scale);
        uint4* row = partial + static_cast<long long>(slot) * Rows::PIECES + 4 * columns;
        if (slot >= 0) __stcs(row + lane % 4, make_uint4(w[0], w[1], w[2], w[3]));
      }
    }
  }

  // Writes the sums of the warp's keys, `factor` times.
  static __device__ __forceinline__ void store(const float (&sum)[D / 8][4], float factor, T* target, long long stride,
                                               int keys) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int key = own_key() + 8 * i;
#pragma unroll
      for (int j = 0; j < D / 8; j += 4) {
        uint32_t w[4];
#pragma unroll
        for (int u = 0; u < 4; u++) w[u] = pack<T>(sum[j + u][2 * i] * factor, sum[j + u][2 * i + 1] * factor);
        transpose_quad(w);
        uint4* row = reinterpret_cast<uint4*>(target + key * stride + 8 * j);
        if (key < keys) row[lane_id() % 4] = make_uint4(w[0], w[1], w[2], w[3]);
      }
    }
  }
  static __device__ __forceinline__ void store(const float (&sum)[D / 8][4], float factor, float* target, int keys) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int key = own_key() + 8 * i;
      if (key >= keys) continue;
#pragma unroll
      for (int j = 0; j < D / 8; j++) {
        const float2 pair = make_float2(sum[j][2 * i] * factor, sum[j][2 * i + 1] * factor);
        *reinterpret_cast<float2*>(target + key * D + 8 * j + lane_id() % 4 * 2) = pair;
      }
    }
  }
};
