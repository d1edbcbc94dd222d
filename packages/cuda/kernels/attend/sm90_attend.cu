// Routed attention on Hopper: the queries that chose a key block attend to it, each (query, slot) gives a normalized
// partial output and its lse.
//
// Persistent. A warpgroup of producers takes work items (a key block and some of its queries) from a global counter, loads
// keys and values by the copy engine and gathers queries into tiles of 64; each consumer warpgroup takes every so many-th
// tile. Tiles run ahead across items, so that gathers hide behind products.
#include "common/divide.cuh"
#include "common/packed_rows.cuh"
#include "common/pairs.cuh"
#include "common/range.cuh"
#include "common/shared.cuh"
#include "common/softmax.cuh"
#include "ptx/atomic.cuh"
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
  void* notes;             // of partial outputs: of packed ones as packed_rows.cuh says, else their lse, base 2
  int* ticket;             // zero
  int first_token, tokens;         // of the lists
  int heads, group, slots, range_count, max_items;
  int first_head;                  // that segment 0 is of
  int first_segment, end_segment;  // the segments to work on
  int block_size, causal;
  float scale;  // of scores, times log2 e; positive
};

// What the consumers have to know of a tile of queries.
struct alignas(16) QueryTile {
  int rows;         // 0: nothing to do, negative: the end
  int length;       // keys of the block
  int chunk;        // number of the block's first chunk of keys
  int last;         // whether this warpgroup has no more tiles of the item
  int masked;       // rows with entries below see less than the block
  int behind;       // a query of local token i sees keys below i - behind
  int slots;        // place of entry 0 among the slots
};

template <class T, int D, int Keys, int Stages, int QueryStages, int Warpgroups, bool Chunked>
struct Attend {
  static constexpr int HALF = Keys * 128;        // bytes of 64 columns of a chunk of keys
  static constexpr int CHUNK = Keys * D * 2;     // bytes of a chunk of keys
  static constexpr int TILE = 64 * D * 2;        // bytes of a tile of queries
  static constexpr int PIECES = D / 8;           // 16-byte pieces of a row
  static constexpr int SHARED = Stages * 2 * CHUNK + QueryStages * TILE + 1024;
  static constexpr int THREADS = 128 * Warpgroups + 128;
  static constexpr int AHEAD = 4;                // tiles whose entries are on their way
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
  uint32_t slots_inverse;
  void* tails;             // of packed partial outputs

  __device__ Attend(const AttendArguments& arguments, Shared& shared_state) : a(arguments), shared(shared_state) {
    chunks = (ptx::shared_address(sharedMemory) + 1023) & ~1023u;
    tiles = chunks + Stages * 2 * CHUNK;
    slots_inverse = inverse_of(a.slots);
    const long long rows = static_cast<long long>((a.end_segment - a.first_segment) / a.range_count) * a.tokens * a.slots;
    tails = packed::Row<D>::tails_of(a.partial, rows);
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

  // The items that tickets are for, in order. Each is read while the one before it is worked on, and nothing waits for that.
  struct Items {
    const Attend& of;
    const AttendArguments& a;
    int offset, end;  // the number of this launch's first item, and of the one after its last
    int drawn;        // the next ticket, of the producers' first thread
    int base, start;  // a segment, and the number of its first item
    int starts;       // a lane's: of the segments after that one
    // The item taken last: its segment, block, the beginning of its list and its rows, none at the end.
    int segment, block, begin, rows;
    // Of its segment's range.
    int query_begin, key_begin, keys, first_position;

    __device__ explicit Items(const Attend& attend) : of(attend), a(attend.a) {
      offset = a.item_starts[a.first_segment];
      end = a.item_starts[a.end_segment];
      segment = query_begin = begin = drawn = 0;
      look_from(a.first_segment, offset);
      draw();
      take();
    }

    __device__ void look_from(int segment, int number) {
      base = segment;
      start = number;
      starts = a.item_starts[min(base + 1 + static_cast<int>(threadIdx.x % 32), a.end_segment)];
    }

    __device__ void draw() {
      if (threadIdx.x % 128 == 0) drawn = ptx::fetch_and_increment(a.ticket);
    }

    __device__ void take() {
      ptx::named_barrier(1, 128);
      if (threadIdx.x % 128 == 0) of.shared.ticket = drawn;
      ptx::named_barrier(1, 128);
      const int number = of.shared.ticket + offset;
      rows = 0;
      if (number >= end) return;
      draw();
      unsigned begun = __ballot_sync(~0u, number >= starts);  // tickets only grow
      while (begun == ~0u) {
        look_from(base + 32, __shfl_sync(~0u, starts, 31));
        begun = __ballot_sync(~0u, number >= starts);
      }
      segment = base + __popc(begun);
      const int first = begun == 0 ? start : __shfl_sync(~0u, starts, __popc(begun) - 1);
      // Field by field: a register of what nobody needs would be waited for when it is given to something else.
      const int4* item = a.items + static_cast<long long>(segment) * a.max_items + number - first;
      block = item->x, begin = item->y, rows = item->z;
      const Range* range = a.ranges + segment % a.range_count;
      query_begin = range->query_begin, key_begin = range->key_begin, keys = range->keys;
      first_position = range->first_position;
    }
  };

  __device__ void produce() const {
    const long long first_slot = region_of(a.first_segment, a.ranges[a.first_segment % a.range_count].query_begin);
    int chunk = 0, tile = 0;
    Items items(*this);
    // Entries of the next tiles, of which the ones after these are on their way.
    int entries[AHEAD];
    load_entries(entries, a.entries + region_of(items.segment, items.query_begin) + items.begin, items.rows);
    while (items.rows > 0) {
      const int rows = items.rows, head = a.first_head + items.segment / a.range_count;
      const int first = items.block * a.block_size, length = min(a.block_size, items.keys - first);
      const int chunk_count = Chunked ? (length + Keys - 1) / Keys : 1;
      const int tile_count = (rows + 63) / 64;
      // All chunks of a block are there at once, or the item has one tile a warpgroup, for which they pass by.
      const bool resident = chunk_count <= Stages;
      const int column = head / a.group * D, key = items.key_begin + first;
      if (resident) load_chunks(chunk, chunk_count, column, key, Warpgroups - tile_count);
      const long long region = region_of(items.segment, items.query_begin);
      QueryTile next;
      next.length = length;
      next.chunk = chunk;
      next.behind = first - items.first_position - 1;
      next.masked = a.causal ? (next.behind + length) * a.slots : 0;
      next.slots = static_cast<int>(region - first_slot);
      const int* list = a.entries + region + items.begin;
      const T* q = static_cast<const T*>(a.q) + (static_cast<long long>(items.query_begin) * a.heads + head) * D +
                   threadIdx.x % PIECES * 8;
      asm("" : "+l"(q));  // one number: the compiler would add its parts up again for each row
      items.take();
      const int end_tile = resident ? tile_count : Warpgroups;
      for (int first_tile = 0; first_tile < end_tile; first_tile += AHEAD) {
        const int* later_list = list + (first_tile + AHEAD) * 64;
        int later_rows = rows - (first_tile + AHEAD) * 64, later[AHEAD];
        if (first_tile + AHEAD >= end_tile) {
          later_list = a.entries + region_of(items.segment, items.query_begin) + items.begin;
          later_rows = items.rows;
        }
        load_entries(later, later_list, later_rows);
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
          const int i = first_tile + u;
          if (i >= end_tile) break;
          next.rows = max(0, min(64, rows - i * 64));
          next.last = i + Warpgroups >= tile_count;
          gather(tile++, next, entries[u], q);
        }
#pragma unroll
        for (int u = 0; u < AHEAD; u++) entries[u] = later[u];
      }
      if (!resident) load_chunks(chunk, chunk_count, column, key, 0);
      chunk += chunk_count;
    }
    QueryTile end{};
    end.rows = -1;
    end.chunk = chunk - 1;  // one that is there
    for (int i = 0; i < Warpgroups; i++, tile++) gather(tile, end, 0, nullptr);
  }

  // Loads a lane's entries of the next tiles.
  static __device__ void load_entries(int (&entries)[AHEAD], const int* list, int rows) {
#pragma unroll
    for (int u = 0; u < AHEAD; u++) entries[u] = load_entry(list + u * 64, rows - u * 64);
  }

  // Where the entries of a segment begin, and, from the first segment of this launch on, its partial outputs.
  __device__ long long region_of(int segment, int query_begin) const {
    return (static_cast<long long>(segment / a.range_count) * a.tokens + query_begin - a.first_token) * a.slots;
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

  // Gathers the queries of up to 64 entries. q: this lane's piece of the range's first query.
  __device__ void gather(int tile, const QueryTile& next, int entry, const T* q) const {
    const int t = threadIdx.x % 128, lane = t % 32, warp = t / 32, stage = tile % QueryStages;
    const uint32_t pieces = static_cast<uint32_t>(divide(entry, a.slots, slots_inverse)) * (a.heads * PIECES);  // before the query
    ptx::barrier_wait(ptx::shared_address(&shared.tile_empty[stage]), (tile / QueryStages & 1) ^ 1);
    const uint32_t full = ptx::shared_address(&shared.tile_full[stage]);
    if (next.rows > 0) {
      const uint64_t keep = ptx::keep_policy();
      const int r = TOGETHER * warp + lane / PIECES, piece = lane % PIECES;
      const uint32_t target = tiles + stage * TILE + (piece >> 3) * 8192 + r * 128 + (((piece & 7) ^ (r & 7)) << 4);
#pragma unroll
      for (int i = 0; i < 16 / TOGETHER; i++) {  // every 8 rows the same pattern of banks
        const uint32_t from = __shfl_sync(~0u, pieces, lane / PIECES + TOGETHER * i);
        ptx::copy_16(target + 4 * TOGETHER * i * 128, q + 8ll * from, keep);
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
      float s[Keys / 2];
      multiply_keys(s, stage, 0);
      ptx::wgmma_wait<0>();
      mask_rows(s, stage, 0);
      float max[2], sum[2] = {}, o[D / 2];
      row_shifts(max, s);
      uint32_t p[Keys / 4];
      exponentials(s, p, max, sum);
      multiply_values<true>(o, p, tile.chunk);
      quad_sums(sum);
      ptx::wgmma_wait<0>();
      if (tile.last) release_chunk(tile.chunk, warpgroup);
      int slot[2];
      slots_of(slot, stage);
      release_tile(stage);
      store(o, slot, max, sum);
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
      float max[2] = {-INFINITY, -INFINITY}, sum[2] = {}, o[D / 2] = {};
      for (int c = 0; c * Keys < tile.length; c++) {
        float s[Keys / 2], top[2], old[2];
        multiply_keys(s, stage, c);
        ptx::wgmma_wait<0>();
        mask_rows(s, stage, c * Keys);
        row_shifts(top, s);
#pragma unroll
        for (int r = 0; r < 2; r++) {
          top[r] = fmaxf(top[r], max[r]);
          old[r] = ptx::exp2_approx(max[r] - shift_of(top[r]));
          max[r] = top[r];
          sum[r] *= old[r];
        }
        uint32_t p[Keys / 4];
        exponentials(s, p, max, sum);
#pragma unroll
        for (int j = 0; j < D / 2; j++) o[j] *= old[j % 4 / 2];
        multiply_values<false>(o, p, tile.chunk + c);
        ptx::wgmma_wait<0>();
        if (tile.last) release_chunk(tile.chunk + c, warpgroup);
      }
      int slot[2];
      slots_of(slot, stage);
      release_tile(stage);
      quad_sums(sum);
      store(o, slot, max, sum);
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
    const int seen = a.causal ? min(left, divide(entry, a.slots, slots_inverse) - behind) : left;
    const int from_here = seen - 2 * static_cast<int>(threadIdx.x & 3);
#pragma unroll
    for (int j = 0; j < Keys / 8; j++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        if (8 * j + e >= from_here) s[4 * j + Row + e] = -INFINITY;
      }
    }
  }

  // What follows treats a thread's two rows side by side: while one waits for a result, the other goes on.

  // What the rows' exponents are taken relative to: their greatest scores, scaled. Where exponentials may be large, those of a few
  // keys do; `store` sees to rows for which they do not. −Infinity only where no key has a greater score.
  __device__ void row_shifts(float (&max)[2], const float (&s)[Keys / 2]) const {
    greatest_scores<PACKED && !Chunked ? 4 : 1>(max, s);
    if (PACKED && !Chunked && __any_sync(~0u, fminf(max[0], max[1]) == -INFINITY)) greatest_scores<1>(max, s);
  }

  // The greatest of every `Step`-th 8 keys.
  template <int Step>
  __device__ void greatest_scores(float (&max)[2], const float (&s)[Keys / 2]) const {
    float top[2][2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
      for (int i = 0; i < 2; i++) top[r][i] = fmaxf(s[4 * i * Step + 2 * r], s[4 * i * Step + 2 * r + 1]);
    }
#pragma unroll
    for (int i = 2; i < Keys / 8 / Step; i++) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        top[r][i % 2] = fmaxf(top[r][i % 2], fmaxf(s[4 * i * Step + 2 * r], s[4 * i * Step + 2 * r + 1]));
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) max[r] = fmaxf(top[r][0], top[r][1]);
#pragma unroll
    for (int lane = 1; lane < 4; lane *= 2) {
#pragma unroll
      for (int r = 0; r < 2; r++) max[r] = fmaxf(max[r], __shfl_xor_sync(~0u, max[r], lane));
    }
#pragma unroll
    for (int r = 0; r < 2; r++) max[r] *= a.scale;
  }

  // Turns scores into probabilities, not yet normalized, packed as the product with the values takes them. Adds them to this
  // thread's sums.
  __device__ void exponentials(const float (&s)[Keys / 2], uint32_t (&p)[Keys / 4], const float (&max)[2], float (&sum)[2]) const {
    const float shift[2] = {shift_of(max[0]), shift_of(max[1])};
#pragma unroll
    for (int j = 0; j < Keys / 4; j++) {
      const int r = j % 2;
      const float x = ptx::exp2_approx(fmaf(s[2 * j], a.scale, -shift[r])), y = ptx::exp2_approx(fmaf(s[2 * j + 1], a.scale, -shift[r]));
      sum[r] += x + y;
      p[j] = pack<T>(x, y);
    }
  }

  static __device__ void quad_sums(float (&sum)[2]) {
#pragma unroll
    for (int lane = 1; lane < 4; lane *= 2) {
#pragma unroll
      for (int r = 0; r < 2; r++) sum[r] += __shfl_xor_sync(~0u, sum[r], lane);
    }
  }

  // Where the rows' partial outputs go; negative: the row is not there.
  __device__ void slots_of(int (&slot)[2], int stage) const {
    const QueryTile& tile = shared.tiles[stage];
#pragma unroll
    for (int r = 0; r < 2; r++) slot[r] = row() + 8 * r < tile.rows ? tile.slots + shared.entries[stage][row() + 8 * r] : -1;
  }

  // Writes the rows as they lie in the registers, no elements exchanged between lanes.
  __device__ void store(const float (&o)[D / 2], const int (&slot)[2], const float (&max)[2], const float (&sum)[2]) const {
    float scale[2], lse[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      // Too far above what its exponents are relative to: as NaN the row is looked at a second time (repair.cu).
      const float whole = sum[r] > 0x1p100f ? NAN : sum[r];
      scale[r] = whole == 0 ? 0 : __fdividef(1.f, whole);
      lse[r] = whole == 0 ? -INFINITY : shift_of(max[r]) + __log2f(whole);
    }
    if constexpr (PACKED) {
      store_packed(o, slot, scale, lse);
    } else {
      if (slot[0] >= 0) store_whole<0>(o, slot[0], scale[0], lse[0]);
      if (slot[1] >= 0) store_whole<1>(o, slot[1], scale[1], lse[1]);
    }
  }

  __device__ void store_packed(const float (&o)[D / 2], const int (&slot)[2], const float (&scale)[2],
                               const float (&lse)[2]) const {
    constexpr int PARTS = D / 64;
    const auto columns = [&](float (&x)[16], int r, int part) {
#pragma unroll
      for (int i = 0; i < 16; i++) x[i] = o[32 * part + i / 2 * 4 + 2 * r + i % 2];
    };
    float largest[2][PARTS], x[16];
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
      for (int part = 0; part < PARTS; part++) columns(x, r, part), largest[r][part] = packed::largest_of(x);
    }
#pragma unroll
    for (int lane = 1; lane < 4; lane *= 2) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
          largest[r][part] = ptx::max_nan(largest[r][part], __shfl_xor_sync(~0u, largest[r][part], lane));
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      packed::Row<D> row;
#pragma unroll
      for (int part = 0; part < PARTS; part++) columns(x, r, part), row.pack(part, x, scale[r], largest[r][part]);
      row.store_noted(a.partial, tails, static_cast<PackedNote*>(a.notes), slot[r], lse[r]);
    }
  }

  template <int R>
  __device__ void store_whole(const float (&o)[D / 2], int slot, float scale, float lse) const {
    const int lane = threadIdx.x % 4;
    uint4* target = static_cast<uint4*>(a.partial) + static_cast<long long>(slot) * PIECES + lane;
#pragma unroll
    for (int i = 0; i < D / 32; i++) {
      uint32_t words[4];
#pragma unroll
      for (int u = 0; u < 4; u++) {
        const int j = 16 * i + 4 * u + 2 * R;
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
MOBA_ATTEND_BOTH(d128_b128, 128, 128, 2, 6, 3, false, 144, 64)
MOBA_ATTEND_BOTH(d128_b64, 128, 64, 2, 9, 3, false, 144, 64)
MOBA_ATTEND_BOTH(d64_b128, 64, 128, 4, 11, 4, false, 104, 64)
MOBA_ATTEND_BOTH(d64_b64, 64, 64, 6, 12, 4, false, 104, 64)
// Blocks of any size: chunks of 128 keys, online softmax.
MOBA_ATTEND_BOTH(d128, 128, 128, 2, 4, 2, true, 208, 88)
MOBA_ATTEND_BOTH(d64, 64, 128, 4, 8, 2, true, 208, 88)
