// Routed attention on Hopper: the queries that chose a key block attend to it, each (query, slot) gives a normalized
// partial output and its lse.
//
// Persistent. A warpgroup of producers takes work items (a key block and some of its queries) from a global counter, loads
// keys and values by the copy engine and gathers queries into tiles of 64; each consumer warpgroup takes every so many-th
// tile. Tiles run ahead across items, so that gathers hide behind products.
#include "common/packed_rows.cuh"
#include "common/pairs.cuh"
#include "common/range.cuh"
#include "common/shared.cuh"
#include "common/softmax.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/exp2.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

struct AttendArguments {
  ptx::TensorMap key_map, value_map;  // [Tk, Hkv * d], boxes of Keys rows and 64 columns
  const void* q;                      // [T, H, d]
  const Range* ranges;
  const int* entries;      // lists, in a region of queries * slots a segment
  const int4* items;       // {block, list begin, rows, 0}, in a region of max_items a segment
  const int* item_starts;  // [segments + 1]: items before each segment
  void* partial;           // partial outputs from the first segment's rows on: bf16 packed, f16 d elements in accumulator order
  void* notes;             // of partial outputs: of packed ones PackedNote, else their lse, base 2
  int* ticket;             // zero
  int first_token, tokens;         // of the lists
  int heads, group, slots, range_count, max_items;
  int first_head;                  // that segment 0 is of
  int first_segment, end_segment;  // the segments to work on
  int block_size, causal;
  float scale;  // of scores, times log2 e; positive
};

// What the consumers have to know of a tile of queries.
struct QueryTile {
  int rows;         // 0: nothing to do, negative: the end
  int length;       // keys of the block
  int chunk;        // number of the block's first chunk of keys
  int last;         // whether this warpgroup has no more tiles of the item
  int masked;       // rows with entries below see less than the block
  int behind;       // a query of local token i sees keys below i - behind
  long long slots;  // of entry 0
};

template <class T, int D, int Keys, int Stages, int QueryStages, int Warpgroups, bool Chunked>
struct Attend {
  static constexpr int HALF = Keys * 128;        // bytes of 64 columns of a chunk of keys
  static constexpr int CHUNK = Keys * D * 2;     // bytes of a chunk of keys
  static constexpr int TILE = 64 * D * 2;        // bytes of a tile of queries
  static constexpr int PIECES = D / 8;           // 16-byte pieces of a row
  static constexpr int SHARED = Stages * 2 * CHUNK + QueryStages * TILE + 1024;
  static constexpr int THREADS = 128 * Warpgroups + 128;
  static constexpr bool PACKED = packed::PACKS<T>;

  struct Shared {
    uint64_t chunk_full[Stages], chunk_empty[Stages], tile_full[QueryStages], tile_empty[QueryStages];
    int entries[QueryStages][64];
    QueryTile tiles[QueryStages];
    int ticket;
  };

  const AttendArguments& a;
  Shared& shared;
  uint32_t chunks, tiles;  // shared addresses

  __device__ Attend(const AttendArguments& arguments, Shared& shared_state) : a(arguments), shared(shared_state) {
    chunks = (ptx::shared_address(sharedMemory) + 1023) & ~1023u;
    tiles = chunks + Stages * 2 * CHUNK;
  }

  __device__ void init() const {
    for (int i = 0; i < Stages; i++) {
      ptx::barrier_init(ptx::shared_address(&shared.chunk_full[i]), 1);
      ptx::barrier_init(ptx::shared_address(&shared.chunk_empty[i]), Warpgroups);
    }
    for (int i = 0; i < QueryStages; i++) {
      ptx::barrier_init(ptx::shared_address(&shared.tile_full[i]), 128 + 128);  // copies and notes of each thread
      ptx::barrier_init(ptx::shared_address(&shared.tile_empty[i]), 128);
    }
    ptx::barrier_init_fence();
  }

  // ---- producers: one warpgroup -----------------------------------------------------------------------------------

  __device__ void produce() const {
    const int t = threadIdx.x % 128, lane = t % 32;
    const int offset = a.item_starts[a.first_segment], end = a.item_starts[a.end_segment] - offset;
    const long long first_slot = region_of(a.first_segment, a.ranges[a.first_segment % a.range_count]);
    int segment = a.first_segment, chunk = 0, tile = 0;
    int drawn = t == 0 ? atomicAdd(a.ticket, 1) : 0;
    for (;;) {
      ptx::named_barrier(1, 128);
      if (t == 0) shared.ticket = drawn;
      ptx::named_barrier(1, 128);
      const int ticket = shared.ticket;
      if (ticket >= end) break;
      if (t == 0) drawn = atomicAdd(a.ticket, 1);  // for the next round: what is read ahead is not waited for
      for (int passed = 32; passed == 32;) {  // tickets only grow: look 32 segments ahead from the last one
        const int next = segment + 1 + lane;
        passed = __popc(__ballot_sync(~0u, next < a.end_segment && ticket + offset >= a.item_starts[next]));
        segment += passed;
      }
      const int4 item = a.items[static_cast<long long>(segment) * a.max_items + ticket + offset - a.item_starts[segment]];
      const int head = a.first_head + segment / a.range_count;
      const Range range = a.ranges[segment % a.range_count];
      const int first = item.x * a.block_size, length = min(a.block_size, range.keys - first);
      const int chunk_count = Chunked ? (length + Keys - 1) / Keys : 1;
      const int tile_count = (item.z + 63) / 64;
      // All chunks of a block are there at once, or the item has one tile a warpgroup, for which they pass by.
      const bool resident = chunk_count <= Stages;
      const int column = head / a.group * D, row = range.key_begin + first;
      if (resident) load_chunks(chunk, chunk_count, column, row, Warpgroups - tile_count);
      const long long region = region_of(segment, range);
      QueryTile next;
      next.length = length;
      next.chunk = chunk;
      next.behind = first - range.first_position - 1;
      next.masked = a.causal ? (next.behind + length) * a.slots : 0;
      next.slots = region - first_slot;
      const int* list = a.entries + region + item.y;
      const T* q = static_cast<const T*>(a.q) + (static_cast<long long>(range.query_begin) * a.heads + head) * D;
      int ahead = load_entry(list, item.z);
      for (int i = 0; i < (resident ? tile_count : Warpgroups); i++, tile++) {
        const int entry = ahead;
        next.rows = max(0, min(64, item.z - i * 64));
        next.last = i + Warpgroups >= tile_count;
        ahead = load_entry(list + (i + 1) * 64, item.z - (i + 1) * 64);
        gather(tile, next, entry, q);
      }
      if (!resident) load_chunks(chunk, chunk_count, column, row, 0);
      chunk += chunk_count;
    }
    QueryTile end_tile{};
    end_tile.rows = -1;
    end_tile.chunk = chunk - 1;  // one that is there
    for (int i = 0; i < Warpgroups; i++, tile++) gather(tile, end_tile, 0, nullptr);
  }

  // Where the entries of a segment begin, and, from the first segment of this launch on, its partial outputs.
  __device__ long long region_of(int segment, const Range& range) const {
    return (static_cast<long long>(segment / a.range_count) * a.tokens + range.query_begin - a.first_token) * a.slots;
  }

  // Loads the chunks of a key block. `absent` warpgroups will not use them.
  __device__ void load_chunks(int chunk, int count, int column, int row, int absent) const {
    if (threadIdx.x % 128 != 0) return;
    for (int i = 0; i < count; i++, chunk++) {
      const int stage = chunk % Stages;
      const uint32_t full = ptx::shared_address(&shared.chunk_full[stage]), empty = ptx::shared_address(&shared.chunk_empty[stage]);
      ptx::barrier_wait(empty, (chunk / Stages & 1) ^ 1);
      for (int j = 0; j < absent; j++) ptx::barrier_arrive(empty);
      ptx::barrier_arrive_expect(full, 2 * CHUNK);
      for (int half = 0; half < D / 64; half++) {
        const uint32_t target = chunks + stage * 2 * CHUNK + half * HALF;
        ptx::tma_load(target, &a.key_map, full, column + half * 64, row + i * Keys);
        ptx::tma_load(target + CHUNK, &a.value_map, full, column + half * 64, row + i * Keys);
      }
    }
  }

  static constexpr int TOGETHER = 32 / PIECES;  // rows that a warp gathers at once

  // Each warp gathers 16 rows of a tile, whose entries its lower lanes hold.
  static __device__ int row_of_lane() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    return TOGETHER * warp + lane % TOGETHER + 4 * TOGETHER * (lane / TOGETHER);
  }
  static __device__ int load_entry(const int* list, int rows) {
    return threadIdx.x % 32 < 16 && rows > 0 ? __ldg(list + min(row_of_lane(), rows - 1)) : 0;
  }

  // Gathers the queries of up to 64 entries.
  __device__ void gather(int tile, const QueryTile& next, int entry, const T* q) const {
    const int t = threadIdx.x % 128, lane = t % 32, warp = t / 32, stage = tile % QueryStages;
    const int token = entry / a.slots;
    ptx::barrier_wait(ptx::shared_address(&shared.tile_empty[stage]), (tile / QueryStages & 1) ^ 1);
    const uint32_t full = ptx::shared_address(&shared.tile_full[stage]);
    if (next.rows > 0) {
      const uint64_t keep = ptx::keep_policy();
#pragma unroll
      for (int i = 0; i < 16 / TOGETHER; i++) {
        const int r = TOGETHER * (warp + 4 * i) + lane / PIECES, piece = lane % PIECES;
        const int from = __shfl_sync(~0u, token, lane / PIECES + TOGETHER * i);
        ptx::copy_16(tiles + stage * TILE + (piece >> 3) * 8192 + r * 128 + (((piece & 7) ^ (r & 7)) << 4),
                     q + static_cast<long long>(from) * a.heads * D + piece * 8, keep);
      }
    }
    ptx::barrier_arrive_after_copies(full);
    // Each lane arrives for what it wrote itself: that one does for its warp is as right, but no tool can tell.
    if (lane < 16) shared.entries[stage][row_of_lane()] = entry;
    if (t == 0) shared.tiles[stage] = next;
    ptx::barrier_arrive(full);
  }

  // ---- consumers --------------------------------------------------------------------------------------------------

  __device__ void consume(int warpgroup) const {
    if (Chunked) {
      consume_chunked(warpgroup);
      return;
    }
    for (int turn = warpgroup; await_tile(turn); turn += Warpgroups) {
      const int stage = turn % QueryStages;
      const QueryTile& tile = shared.tiles[stage];
      float s[Keys / 2], o[D / 2];
      multiply_keys(s, stage, 0);
      ptx::wgmma_wait<0>();
      mask_rows(s, stage, 0);
      const float max0 = row_max<0>(s) * a.scale, max1 = row_max<2>(s) * a.scale;
      uint32_t p[Keys / 4];
      float sum0 = exponentials<0>(s, p, shift_of(max0)), sum1 = exponentials<2>(s, p, shift_of(max1));
      multiply_values<true>(o, p, tile.chunk);
      sum0 = quad_sum(sum0);
      sum1 = quad_sum(sum1);
      ptx::wgmma_wait<0>();
      if (tile.last) release_chunk(tile.chunk, warpgroup);
      store_rows(o, stage, max0, sum0, max1, sum1);
      release_tile(stage);
    }
  }

  // Waits for a tile. Returns false at the end.
  __device__ bool await_tile(int turn) const {
    const int stage = turn % QueryStages;
    ptx::barrier_wait(ptx::shared_address(&shared.tile_full[stage]), turn / QueryStages & 1);
    ptx::proxy_fence();
    return __shfl_sync(~0u, shared.tiles[stage].rows, 0) >= 0;
  }

  // Blocks of several chunks: online softmax.
  __device__ void consume_chunked(int warpgroup) const {
    for (int turn = warpgroup; await_tile(turn); turn += Warpgroups) {
      const int stage = turn % QueryStages;
      const QueryTile& tile = shared.tiles[stage];
      float max0 = -INFINITY, max1 = -INFINITY, sum0 = 0, sum1 = 0;
      float o[D / 2] = {};
      for (int c = 0; c * Keys < tile.length; c++) {
        float s[Keys / 2];
        multiply_keys(s, stage, c);
        ptx::wgmma_wait<0>();
        mask_rows(s, stage, c * Keys);
        const float top0 = fmaxf(max0, row_max<0>(s) * a.scale), top1 = fmaxf(max1, row_max<2>(s) * a.scale);
        const float shift0 = shift_of(top0), shift1 = shift_of(top1);
        const float old0 = ptx::exp2_approx(max0 - shift0), old1 = ptx::exp2_approx(max1 - shift1);
        uint32_t p[Keys / 4];
        sum0 = sum0 * old0 + exponentials<0>(s, p, shift0);
        sum1 = sum1 * old1 + exponentials<2>(s, p, shift1);
#pragma unroll
        for (int j = 0; j < D / 2; j++) o[j] *= j % 4 < 2 ? old0 : old1;
        max0 = top0;
        max1 = top1;
        multiply_values<false>(o, p, tile.chunk + c);
        ptx::wgmma_wait<0>();
        if (tile.last) release_chunk(tile.chunk + c, warpgroup);
      }
      store_rows(o, stage, max0, quad_sum(sum0), max1, quad_sum(sum1));
      release_tile(stage);
    }
  }

  // The first of this thread's two rows of a tile; the other is 8 below.
  static __device__ int row() { return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4; }

  // Begins s = queries · keysᵀ of the c-th chunk of a tile's block.
  __device__ void multiply_keys(float (&s)[Keys / 2], int query_stage, int c) const {
    const int chunk = shared.tiles[query_stage].chunk + c, stage = chunk % Stages;
    const uint64_t query_tile = ptx::descriptor_k_major(tiles + query_stage * TILE);
    const uint64_t key_tile = ptx::descriptor_k_major(chunks + stage * 2 * CHUNK);
    ptx::barrier_wait(ptx::shared_address(&shared.chunk_full[stage]), chunk / Stages & 1);
    ptx::wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
      const uint64_t x = query_tile + ptx::descriptor_offset((kk >> 2) * 8192 + (kk & 3) * 32);
      const uint64_t y = key_tile + ptx::descriptor_offset((kk >> 2) * HALF + (kk & 3) * 32);
      if (kk == 0) ptx::wgmma_abt_first(s, x, y, T{});
      else ptx::wgmma_abt_more(s, x, y, T{});
    }
    ptx::wgmma_commit();
  }

  // Begins o = probabilities · values, or adds the products to o.
  template <bool First>
  __device__ void multiply_values(float (&o)[D / 2], const uint32_t (&p)[Keys / 4], int chunk) const {
    const uint64_t values = ptx::descriptor_mn_major(chunks + chunk % Stages * 2 * CHUNK + CHUNK, HALF);
    ptx::wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < Keys / 16; kk++) {
      const uint64_t y = values + ptx::descriptor_offset(kk * 2048);
      if (First && kk == 0) ptx::wgmma_ab_first(o, p + 4 * kk, y, T{});
      else ptx::wgmma_ab_more(o, p + 4 * kk, y, T{});
    }
    ptx::wgmma_commit();
  }

  // Replaces the scores of keys that a row does not see. They are not multiplied: a NaN among them stays out.
  __device__ void mask_rows(float (&s)[Keys / 2], int stage, int skipped) const {
    const QueryTile& tile = shared.tiles[stage];
    const int entry0 = shared.entries[stage][row()], entry1 = shared.entries[stage][row() + 8], left = tile.length - skipped;
    if (!__any_sync(~0u, left < Keys || min(entry0, entry1) < tile.masked)) return;
    mask<0>(s, left, entry0, tile.behind + skipped);
    mask<2>(s, left, entry1, tile.behind + skipped);
  }

  __device__ void store_rows(const float (&o)[D / 2], int stage, float max0, float sum0, float max1, float sum1) const {
    const QueryTile& tile = shared.tiles[stage];
    const int r = row();
    const long long slot0 = r < tile.rows ? tile.slots + shared.entries[stage][r] : -1;
    const long long slot1 = r + 8 < tile.rows ? tile.slots + shared.entries[stage][r + 8] : -1;
    store<0>(o, inverse_sum(sum0), log_sum(max0, sum0), slot0);
    store<2>(o, inverse_sum(sum1), log_sum(max1, sum1), slot1);
  }

  // Tells the producers that this thread is done with a tile of queries and its notes.
  __device__ void release_tile(int stage) const {
    ptx::barrier_arrive(ptx::shared_address(&shared.tile_empty[stage]));
  }

  // Tells the producers that this warpgroup is done with a chunk.
  __device__ void release_chunk(int chunk, int warpgroup) const {
    ptx::named_barrier(2 + warpgroup, 128);
    if (threadIdx.x % 128 == 0) ptx::barrier_arrive(ptx::shared_address(&shared.chunk_empty[chunk % Stages]));
  }

  template <int Row>
  __device__ void mask(float (&s)[Keys / 2], int left, int entry, int behind) const {
    const int seen = a.causal ? min(left, entry / a.slots - behind) : left, column = 2 * (static_cast<int>(threadIdx.x) & 3);
#pragma unroll
    for (int j = 0; j < Keys / 8; j++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        if (8 * j + column + e >= seen) s[4 * j + Row + e] = -INFINITY;
      }
    }
  }

  template <int Row>
  static __device__ float row_max(const float (&s)[Keys / 2]) {
    float top = fmaxf(s[Row], s[Row + 1]);
#pragma unroll
    for (int j = 1; j < Keys / 8; j++) top = fmaxf(top, fmaxf(s[4 * j + Row], s[4 * j + Row + 1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    return fmaxf(top, __shfl_xor_sync(~0u, top, 2));
  }

  // Turns scores into probabilities, not yet normalized, packed as the product with the values takes them. Returns this
  // thread's part of their sum.
  template <int Row>
  __device__ float exponentials(const float (&s)[Keys / 2], uint32_t (&p)[Keys / 4], float shift) const {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < Keys / 8; j++) {
      const float x = ptx::exp2_approx(fmaf(s[4 * j + Row], a.scale, -shift));
      const float y = ptx::exp2_approx(fmaf(s[4 * j + Row + 1], a.scale, -shift));
      sum += x + y;
      p[2 * j + Row / 2] = pack<T>(x, y);
    }
    return sum;
  }

  static __device__ float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
  }

  // Writes one of a thread's two rows as it lies in the registers, no elements exchanged between lanes. `slot`: negative for
  // a row that is not there.
  template <int Row>
  __device__ void store(const float (&o)[D / 2], float scale, float lse, long long slot) const {
    if constexpr (PACKED) store_packed<Row>(o, scale, lse, slot);
    else if (slot >= 0) store_whole<Row>(o, scale, lse, slot);
  }

  template <int Row>
  __device__ void store_packed(const float (&o)[D / 2], float scale, float lse, long long slot) const {
    packed::Row<D> row;
#pragma unroll
    for (int part = 0; part < D / 64; part++) {
      float x[16];
#pragma unroll
      for (int i = 0; i < 16; i++) x[i] = o[32 * part + i / 2 * 4 + Row + i % 2];
      row.pack(part, x, scale);
    }
    if (slot < 0) return;
    row.store(a.partial, slot);
    if (threadIdx.x % 4 == 0) static_cast<PackedNote*>(a.notes)[slot] = {lse, row.steps};
  }

  template <int Row>
  __device__ void store_whole(const float (&o)[D / 2], float scale, float lse, long long slot) const {
    const int lane = threadIdx.x % 4;
    uint4* target = static_cast<uint4*>(a.partial) + slot * PIECES + lane;
#pragma unroll
    for (int i = 0; i < D / 32; i++) {
      uint32_t words[4];
#pragma unroll
      for (int u = 0; u < 4; u++) {
        const int j = 16 * i + 4 * u + Row;
        words[u] = pack<T>(o[j] * scale, o[j + 1] * scale);
      }
      __stcs(target + 4 * i, make_uint4(words[0], words[1], words[2], words[3]));
    }
    if (lane == 0) static_cast<float*>(a.notes)[slot] = lse;
  }
};

// Registers that the CTA was launched with are shared out between the consumers and the producers. By the shuffle the
// compiler knows that a warp has one number, and keeps addresses in uniform registers.
#define MOBA_ATTEND(NAME, T, D, KEYS, STAGES, QUERY_STAGES, WARPGROUPS, CHUNKED, CONSUMER, PRODUCER)                   \
  extern "C" __global__ void __launch_bounds__(128 * WARPGROUPS + 128, 1)                                              \
      NAME(const __grid_constant__ AttendArguments arguments) {                                                        \
    using Kernel = Attend<T, D, KEYS, STAGES, QUERY_STAGES, WARPGROUPS, CHUNKED>;                                      \
    __shared__ Kernel::Shared shared;                                                                                  \
    const Kernel kernel(arguments, shared);                                                                            \
    if (threadIdx.x == 0) kernel.init();                                                                               \
    __syncthreads();                                                                                                   \
    if (threadIdx.x >= 128 * WARPGROUPS) {                                                                             \
      asm volatile("setmaxnreg.dec.sync.aligned.u32 " #PRODUCER ";");                                                  \
      kernel.produce();                                                                                                \
    } else {                                                                                                           \
      asm volatile("setmaxnreg.inc.sync.aligned.u32 " #CONSUMER ";");                                                  \
      kernel.consume(__shfl_sync(~0u, threadIdx.x / 128, 0));                                                          \
    }                                                                                                                  \
  }
#define MOBA_ATTEND_BOTH(NAME, ...)                           \
  MOBA_ATTEND(sm90_attend_bf16_##NAME, bf16, __VA_ARGS__) \
  MOBA_ATTEND(sm90_attend_f16_##NAME, f16, __VA_ARGS__)

// Blocks of at most 64 or 128 keys: one chunk, whose scores and outputs take turns in the registers.
MOBA_ATTEND_BOTH(d128_b128, 128, 128, 2, 6, 3, false, 152, 56)
MOBA_ATTEND_BOTH(d128_b64, 128, 64, 4, 6, 3, false, 152, 56)
MOBA_ATTEND_BOTH(d64_b128, 64, 128, 4, 8, 4, false, 104, 64)
MOBA_ATTEND_BOTH(d64_b64, 64, 64, 6, 12, 3, false, 152, 56)
// Blocks of any size: chunks of 128 keys, online softmax.
MOBA_ATTEND_BOTH(d128, 128, 128, 2, 4, 2, true, 216, 72)
MOBA_ATTEND_BOTH(d64, 64, 128, 4, 8, 2, true, 216, 72)
