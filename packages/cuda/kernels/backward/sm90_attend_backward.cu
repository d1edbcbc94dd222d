// Gradients of routed attention on Hopper: the queries that chose a key block pass by it; it keeps dk and dv, and each
// (query, slot) gets its part of dq. See slot_backward.ts.
//
// Persistent. A CTA is one team for chunks of up to 128 keys, two for chunks of up to 64. A team draws work items from a
// global counter; its producers load keys and values by the copy engine and gather 64 rows of q and dOut at a time, ahead
// across items. Each of its consumer warpgroups owns 64 keys, whose dk and dv stay in registers over an item. Scores are
// kept as sᵀ = k·qᵀ, rows are keys, so that p and ds lie in registers as the products for dv and dk take them; for
// dq = ds·k, ds goes through shared memory. A tile's products begin in the order s, dp, dv, dq, dk: p is computed while dp
// is under way, ds during dv, and dq is stored during dk.
#include "backward/wave.cuh"
#include "common/packed_rows.cuh"
#include "common/pairs.cuh"
#include "common/shared.cuh"
#include "common/tile.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/exp2.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

struct BackwardArguments : WaveArguments {
  ptx::TensorMap key_map, value_map;  // [Tk, Hkv * d], boxes of Keys rows and 64 columns
  const void* q;                      // [T, H, d]
  const void* d_out;
  float exponent_scale;  // scale, times log2 e
};

constexpr int ROWS = 64;  // of queries in a tile

// What consumers have to know of a tile.
struct TileNote {
  int end;     // there is none any more
  int last;    // of its item
  int number;  // of its item, of the team's
  int keys;    // of the chunk; may be none, or negative
  int key;     // the first one's row of k
  int piece;
};

// What producers have to know of an item.
struct Item {
  TileNote note;
  int begin, rows;  // of the joined lists
  int chunk;        // of its block
  int key, column;  // of the first key in the key map
  int behind;       // query i of the range sees keys below i - behind
  int head;         // the group's first of the heads taken
  int query;        // the range's first
  long long list;   // its block's of that head
};

// What consumers have to know of the rows of a tile.
struct RowNotes {
  alignas(16) float2 terms[ROWS];
  alignas(8) int limits[ROWS];  // a row sees the chunk's keys below
  int targets[ROWS];            // where its part of dq goes; -1: there is no row
  alignas(16) int masked[4];    // by warp of producers: rows see less than a full chunk
};

template <class T, int D, int Keys, int KeyStages, int ValueStages, int TileStages>
struct Backward {
  static constexpr int TEAMS = 128 / Keys, WARPGROUPS = 2 / TEAMS;             // warpgroups of a team's consumers
  static constexpr int PRODUCERS = 128 / TEAMS, CONSUMERS = 128 * WARPGROUPS;  // threads of a team
  static constexpr int PIECES = D / 8;        // 16-byte pieces of a row
  static constexpr int HALF = Keys * 128;     // bytes of 64 columns of a chunk
  static constexpr int CHUNK = Keys * D * 2;  // bytes of a chunk of keys or of values
  static constexpr int TILE = ROWS * D * 2;   // bytes of a tile of q or of dOut
  static constexpr int DS = ROWS * Keys * 2;  // bytes of ds, a row a query
  // Tiles that consumers take at once. dq comes in products of 64 columns: the warpgroups of a team share those out, or,
  // where there is but one, take a tile each.
  static constexpr int TILES = D < 64 * WARPGROUPS ? 2 : 1;
  static constexpr int HALVES = TILES * D / (64 * WARPGROUPS);  // products for dq of a warpgroup
  static constexpr int TEAM = KeyStages * CHUNK + ValueStages * CHUNK + TileStages * 2 * TILE + TILES * DS;

  struct Team {
    uint64_t key_full[KeyStages], key_empty[KeyStages], value_full[ValueStages], value_empty[ValueStages];
    uint64_t tile_full[TileStages], tile_empty[TileStages], ds_empty;
    RowNotes rows[TileStages];
    TileNote notes[TileStages];
    Item item;       // the one that producers are at
    int touched[D];  // by column: the item's keys below have a dv that is not a number
    int any_touched;
  };

  const BackwardArguments& a;
  Team& team;
  const int number;  // of the team
  uint32_t keys, values, tiles, ds_tiles;  // shared addresses

  __device__ Backward(const BackwardArguments& arguments, Team* teams, int team_number)
      : a(arguments), team(teams[TEAMS == 1 ? 0 : team_number]), number(TEAMS == 1 ? 0 : team_number) {
    keys = ((ptx::shared_address(sharedMemory) + 1023) & ~1023u) + number * TEAM;
    values = keys + KeyStages * CHUNK;
    tiles = values + ValueStages * CHUNK;
    ds_tiles = tiles + TileStages * 2 * TILE;
  }

  static __device__ uint32_t address(const uint64_t& barrier) { return ptx::shared_address(&barrier); }

  __device__ void init() const {
    for (int i = 0; i < KeyStages; i++) {
      ptx::barrier_init(address(team.key_full[i]), 1);
      ptx::barrier_init(address(team.key_empty[i]), CONSUMERS);
    }
    for (int i = 0; i < ValueStages; i++) {
      ptx::barrier_init(address(team.value_full[i]), 1);
      ptx::barrier_init(address(team.value_empty[i]), CONSUMERS);
    }
    for (int i = 0; i < TileStages; i++) {
      ptx::barrier_init(address(team.tile_full[i]), 2 * PRODUCERS);  // copies and notes of each thread
      ptx::barrier_init(address(team.tile_empty[i]), CONSUMERS);
    }
    ptx::barrier_init(address(team.ds_empty), CONSUMERS);
    for (int i = 0; i < D; i++) team.touched[i] = 0;
    team.any_touched = 0;
    ptx::barrier_init_fence();
  }

  // ---- producers --------------------------------------------------------------------------------------------------

  static constexpr int WARP_ROWS = 32 * ROWS / PRODUCERS;  // of a tile, that a warp gathers; lanes below see to one each
  static constexpr int TOGETHER = 32 / PIECES;             // rows that a warp gathers at once

  static __device__ int producer() { return threadIdx.x % PRODUCERS; }

  // A lane's place in the joined lists of the group's query heads.
  struct Place {
    int row;             // of the joined lists
    int before, count;   // rows of the lists before the current one, and of it
    int member;          // number of the current list
    const int* entries;  // of it
  };

  __device__ void produce() const {
    const int t = producer();
    const Item& item = team.item;
    int drawn = t == 0 ? atomicAdd(a.ticket, 1) : 0, segment = 0, tile = 0;
    for (int count = 0;; count++) {
      ptx::named_barrier(1 + number, PRODUCERS);  // everyone is done with the last item
      if (t < 32) {
        segment = find_item(count, __shfl_sync(~0u, drawn, 0), segment);
        if (t == 0) drawn = atomicAdd(a.ticket, 1);  // for the next round: what is read ahead is not waited for
      }
      ptx::named_barrier(1 + number, PRODUCERS);
      if (item.note.end) break;
      Place place = {item.begin + t / 32 * WARP_ROWS + t % WARP_ROWS, 0, 0, -1, nullptr};
      int entry = next_entry(place);
      for (int i = 0; i == 0 || i * ROWS < item.rows || i % TILES != 0; i++, tile++) {
        const int now = entry, member = place.member;
        entry = next_entry(place);
        gather(tile, i, now, member);
        // A first tile is under way before keys and values are waited for.
        if (i == 0 && t == 0) {
          load_chunk<KeyStages>(keys, team.key_full, team.key_empty, &a.key_map);
          load_chunk<ValueStages>(values, team.value_full, team.value_empty, &a.value_map);
        }
      }
    }
    gather(tile, 0, -1, 0);
  }

  // Finds the item that a ticket is for, the team's `count`th, by one warp. Returns its segment; `segment`: of the last one.
  __device__ int find_item(int count, int ticket, int segment) const {
    if (ticket >= a.item_starts[a.segments]) {
      if (threadIdx.x % 32 == 0) team.item.note.end = 1;
      return segment;
    }
    for (int passed = 32; passed == 32;) {  // tickets only grow: look 32 segments ahead from the last one
      const int next = segment + 1 + threadIdx.x % 32;
      passed = __popc(__ballot_sync(~0u, next < a.segments && ticket >= a.item_starts[next]));
      segment += passed;
    }
    if (threadIdx.x % 32 != 0) return segment;
    const int4 found = a.items[static_cast<long long>(segment) * a.most_items + ticket - a.item_starts[segment]];
    const Range range = a.ranges[segment % a.range_count];
    const int kv_head = segment / a.range_count, block = found.x / a.chunks, chunk = found.x % a.chunks;
    const int first = block * a.block_size + chunk * a.chunk_keys;
    Item& item = team.item;
    item.note.end = 0;
    item.note.number = count;
    item.note.keys = min(min(a.chunk_keys, a.block_size - chunk * a.chunk_keys), range.keys - first);
    item.note.key = (range.key_begin + first) * (a.heads / a.group) + a.first_kv_head + kv_head;
    item.note.piece = found.w;
    item.begin = found.y;
    item.rows = found.z;
    item.chunk = chunk;
    item.key = range.key_begin + first;
    item.column = (a.first_kv_head + kv_head) * D;
    item.behind = first - range.first_position - 1;
    item.head = kv_head * a.group;
    item.query = range.query_begin;
    item.list = static_cast<long long>(item.head) * a.columns + range.first_block + block;
    return segment;
  }

  // The first row of the range's queries among those of all heads taken, for a member of the group.
  __device__ long long first_query(int member) const {
    return static_cast<long long>(team.item.head + member) * a.tokens + team.item.query - a.first_token;
  }

  // The entry of a lane's row, −1 beyond the item's end; goes on to the lane's row of the next tile.
  __device__ int next_entry(Place& place) const {
    const Item& item = team.item;
    const int row = place.row;
    place.row += ROWS;
    if (row >= item.begin + item.rows || producer() % 32 >= WARP_ROWS) return -1;
    while (row >= place.before + place.count) {
      place.before += place.count;
      place.member++;
      const long long list = item.list + static_cast<long long>(place.member) * a.columns;
      place.count = __ldg(a.counts + list);
      place.entries = a.entries + first_query(place.member) * a.slots + __ldg(a.starts + list);
    }
    return __ldg(place.entries + row - place.before);
  }

  template <int Stages>
  __device__ void load_chunk(uint32_t chunks, const uint64_t* full_barriers, const uint64_t* empty_barriers,
                             const ptx::TensorMap* map) const {
    const Item& item = team.item;
    const int stage = item.note.number % Stages;
    const uint32_t full = address(full_barriers[stage]);
    ptx::barrier_wait(address(empty_barriers[stage]), (item.note.number / Stages & 1) ^ 1);
    ptx::barrier_arrive_expect(full, CHUNK);
    for (int half = 0; half < D / 64; half++) {
      ptx::tma_load(chunks + stage * CHUNK + half * HALF, map, full, item.column + half * 64, item.key);
    }
  }

  // Gathers tile i of the item, the team's `tile`th. Lanes below WARP_ROWS give an entry each, −1: none, and the member of
  // the group that it is of.
  __device__ void gather(int tile, int i, int entry, int member) const {
    const int t = producer(), lane = t % 32, first_row = t / 32 * WARP_ROWS, stage = tile % TileStages;
    const Item& item = team.item;
    const uint32_t full = address(team.tile_full[stage]);
    const int token = entry / a.slots, head = a.first_kv_head * a.group + item.head + member;
    const int query = entry < 0 ? -1 : (item.query + token) * a.heads + head;
    ptx::barrier_wait(address(team.tile_empty[stage]), (tile / TileStages & 1) ^ 1);
    RowNotes& rows = team.rows[stage];
    if (!item.note.end) {
      const uint64_t keep = ptx::keep_policy();
#pragma unroll 2
      for (int j = 0; j < WARP_ROWS; j += TOGETHER) {
        const int r = first_row + j + lane / PIECES, piece = lane % PIECES;
        const int from = __shfl_sync(~0u, query, j + lane / PIECES);
        const uint32_t to = tiles + stage * 2 * TILE + (piece >> 3) * 8192 + r * 128 + (((piece & 7) ^ (r & 7)) << 4);
        if (from >= 0) {
          const long long at = static_cast<long long>(from) * D + piece * 8;
          ptx::copy_16(to, static_cast<const T*>(a.q) + at, keep);
          ptx::copy_16(to + TILE, static_cast<const T*>(a.d_out) + at, keep);
        } else {
          ptx::copy_16_or_zero(to, a.q, false);
          ptx::copy_16_or_zero(to + TILE, a.q, false);
        }
      }
      int limit = 0;  // the row sees the chunk's keys below
      if (lane < WARP_ROWS) {
        const bool there = entry >= 0;
        const long long at = there ? static_cast<long long>(head) * a.all_tokens + item.query + token : 0;
        ptx::copy_8_or_zero(ptx::shared_address(&rows.terms[first_row + lane]), a.terms + at, there);
        if (there) limit = a.causal ? min(item.note.keys, token - item.behind) : item.note.keys;
        const long long slot = (first_query(member) * a.slots + entry) * a.chunks + item.chunk;
        rows.limits[first_row + lane] = limit;
        rows.targets[first_row + lane] = there ? static_cast<int>(slot) : -1;
      }
      // Rows that are not there are zeros and need no mask; but nobody sees the keys of a tile of nothing else.
      const bool masked = __any_sync(~0u, item.rows <= i * ROWS || (entry >= 0 && limit < Keys));
      if (lane == 0) rows.masked[t / 32] = masked;
    }
    ptx::barrier_arrive_after_copies(full);
    if (t == 0) {
      team.notes[stage] = item.note;
      team.notes[stage].last = (i / TILES + 1) * TILES * ROWS >= item.rows;
    }
    ptx::barrier_arrive(full);
  }

  // ---- consumers --------------------------------------------------------------------------------------------------

  // Of a tile in registers: sᵀ and dpᵀ of this warpgroup's keys and the tile's rows.
  using Scores = float[ROWS / 2];
  using Weights = uint32_t[ROWS / 4];  // packed, as products take them
  using Sums = float[D / 2];           // dk or dv
  using SlotGradient = float[32];      // 64 columns of a tile's dq

  __device__ void consume(int warpgroup) const {
    Sums dk, dv;
#pragma unroll
    for (int i = 0; i < D / 2; i++) dk[i] = dv[i] = 0;
    for (int turn = 0; await_tile(turn); turn += TILES) {  // items
      for (int more = 0;; more = 1, turn += TILES) {       // tiles of an item
        add_tiles(dk, dv, more, turn, warpgroup);
        if (team.notes[turn % TileStages].last) break;
        for (int i = 0; i < TILES; i++) release(team.tile_empty[(turn + i) % TileStages]);
      }
      if (team.any_touched) touch(dv, warpgroup);
      store_sums(dk, dv, team.notes[turn % TileStages], warpgroup);
      for (int i = 0; i < TILES; i++) release(team.tile_empty[(turn + i) % TileStages]);
    }
  }

  // Adds TILES tiles to dk and dv, or begins them with these if there is nothing to add to (`more`), and writes their
  // rows' parts of dq.
  __device__ void add_tiles(Sums& dk, Sums& dv, int more, int turn, int warpgroup) const {
    Weights ds;
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      await_tile(turn + i);
      weigh(ds, dv, more, turn + i, warpgroup);
      if (i == 0) ptx::barrier_wait(address(team.ds_empty), (turn / TILES & 1) ^ 1);
      store_slopes(ds, ds_tiles + i * DS, warpgroup);
      if (i + 1 < TILES) add(dk, ds, tiles + (turn + i) % TileStages * 2 * TILE, more);
      more |= i + 1 < TILES;
    }
    ptx::proxy_fence();
    ptx::named_barrier(3 + number, CONSUMERS);

    // This warpgroup's tile, and its columns of keys.
    const int stage = (TILES == 1 ? turn : turn + warpgroup) % TileStages;
    const uint32_t ds_tile = ds_tiles + (TILES == 1 ? 0 : warpgroup) * DS;
    const int first_half = TILES == 1 ? warpgroup * HALVES : 0;
    const RowNotes& rows = team.rows[stage];
    const TileNote& note = team.notes[stage];
    const uint32_t columns = keys + note.number % KeyStages * CHUNK + first_half * HALF;
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
      SlotGradient dq;
      multiply_slopes(dq, ds_tile, columns + half * HALF);
      if (half == 0) {
        add(dk, ds, tiles + (turn + TILES - 1) % TileStages * 2 * TILE, more);
        ptx::wgmma_wait<1>();
      } else {
        ptx::wgmma_wait<0>();
      }
      ptx::wgmma_results(dq);
      if (is_masked(rows)) repair_slots(dq, ds_tile, columns + half * HALF, rows);
      if (half == HALVES - 1) release(team.ds_empty);
      store_slots(dq, rows, first_half + half);
    }
    if (note.last) release(team.key_empty[note.number % KeyStages]);
    ptx::wgmma_wait<0>();
  }

  // Begins a tile's products for dv and computes ds.
  __device__ void weigh(Weights& ds, Sums& dv, int more, int turn, int warpgroup) const {
    const int stage = turn % TileStages;
    const TileNote& note = team.notes[stage];
    const RowNotes& rows = team.rows[stage];
    const int key_stage = note.number % KeyStages, value_stage = note.number % ValueStages;
    const uint32_t queries = tiles + stage * 2 * TILE, gradients = queries + TILE;
    const bool masked = is_masked(rows);

    Scores s, dp;
    ptx::barrier_wait(address(team.key_full[key_stage]), note.number / KeyStages & 1);
    multiply_rows(s, keys + key_stage * CHUNK, queries, warpgroup);
    ptx::barrier_wait(address(team.value_full[value_stage]), note.number / ValueStages & 1);
    multiply_rows(dp, values + value_stage * CHUNK, gradients, warpgroup);

    ptx::wgmma_wait<1>();
    ptx::wgmma_results(s);
    Weights p;
    exponentials(p, s, rows);
    if (masked) {
      mask(p, rows, warpgroup);
      if (!finite_terms(rows)) take_out_non_finite(queries, rows);
    }
    add(dv, p, gradients, more);

    ptx::wgmma_wait<1>();
    ptx::wgmma_results(dp);
    if (note.last && turn % TILES == TILES - 1) release(team.value_empty[value_stage]);
    slopes(ds, dp, p, rows);
    if (masked) mask(ds, rows, warpgroup);
  }

  static __device__ bool is_masked(const RowNotes& rows) {
    const int4 warps = *reinterpret_cast<const int4*>(rows.masked);
    return (PRODUCERS == 128 ? warps.x | warps.y | warps.z | warps.w : warps.x | warps.y) != 0;
  }

  // Waits for a tile. Returns false at the end.
  __device__ bool await_tile(int turn) const {
    const int stage = turn % TileStages;
    ptx::barrier_wait(address(team.tile_full[stage]), turn / TileStages & 1);
    ptx::proxy_fence();
    return __shfl_sync(~0u, team.notes[stage].end, 0) == 0;
  }

  // Tells that this thread is done with what the barrier is of.
  static __device__ void release(const uint64_t& empty) {
    ptx::barrier_arrive(address(empty));
  }

  // The first of this thread's two rows of 64; the other is 8 below.
  static __device__ int own_row() {
    const int t = anew(threadIdx.x);
    return t % 128 / 32 * 16 + t % 32 / 4;
  }
  static __device__ int own_column() { return threadIdx.x % 4 * 2; }

  // Begins x = this warpgroup's rows of a chunk · tileᵀ.
  static __device__ void multiply_rows(Scores& x, uint32_t chunk, uint32_t tile, int warpgroup) {
    const uint64_t chunk_rows = ptx::descriptor_k_major(chunk + warpgroup * 8192);
    const uint64_t tile_rows = ptx::descriptor_k_major(tile);
    ptx::wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
      const uint64_t x_step = chunk_rows + ptx::descriptor_offset((kk >> 2) * HALF + (kk & 3) * 32);
      const uint64_t y_step = tile_rows + ptx::descriptor_offset((kk >> 2) * 8192 + (kk & 3) * 32);
      if (kk == 0) ptx::wgmma_abt_first(x, x_step, y_step, T{});
      else ptx::wgmma_abt_more(x, x_step, y_step, T{});
    }
    ptx::wgmma_commit();
  }

  // Begins sum += weights · tile, or sum = weights · tile when there is nothing in it.
  static __device__ void add(Sums& sum, const Weights& weights, uint32_t tile, int more) {
    const uint64_t rows = ptx::descriptor_mn_major(tile, 8192);
    ptx::wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < ROWS / 16; kk++) {
      const uint64_t step = rows + ptx::descriptor_offset(kk * 2048);
      if (kk == 0) ptx::wgmma_ab_more_if(more, sum, weights, step, T{});
      else ptx::wgmma_ab_more(sum, weights + 4 * kk, step, T{});
    }
    ptx::wgmma_commit();
  }

  // Begins dq = ds · keys, of 64 columns.
  static __device__ void multiply_slopes(SlotGradient& dq, uint32_t ds_tile, uint32_t key_columns) {
    const uint64_t rows = ptx::descriptor_k_major(ds_tile), columns = ptx::descriptor_mn_major(key_columns, HALF);
    ptx::wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < Keys / 16; kk++) {
      const uint64_t x = rows + ptx::descriptor_offset((kk >> 2) * 8192 + (kk & 3) * 32);
      const uint64_t y = columns + ptx::descriptor_offset(kk * 2048);
      if (kk == 0) ptx::wgmma_ab_first(dq, x, y, T{});
      else ptx::wgmma_ab_more(dq, x, y, T{});
    }
    ptx::wgmma_commit();
  }

  // Terms of the rows that are this thread's columns 8j + {0, 1}: {lse, D, lse, D}, lse in base 2.
  static __device__ float4 terms_of(const RowNotes& rows, int j) {
    return *reinterpret_cast<const float4*>(&rows.terms[8 * j + own_column()]);
  }

  // p of scores.
  __device__ void exponentials(Weights& p, const Scores& s, const RowNotes& rows) const {
#pragma unroll
    for (int j = 0; j < ROWS / 8; j++) {
      const float4 terms = terms_of(rows, j);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float x = ptx::exp2_approx(fmaf(s[4 * j + 2 * h], a.exponent_scale, -terms.x));
        const float y = ptx::exp2_approx(fmaf(s[4 * j + 2 * h + 1], a.exponent_scale, -terms.z));
        p[2 * j + h] = pack<T>(x, y);
      }
    }
  }

  // ds of p and dp, without the scale.
  static __device__ void slopes(Weights& ds, const Scores& dp, const Weights& p, const RowNotes& rows) {
#pragma unroll
    for (int j = 0; j < ROWS / 8; j++) {
      const float4 terms = terms_of(rows, j);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float weights[2];
        unpack_pair<T>(weights, p[2 * j + h]);
        ds[2 * j + h] = pack<T>(weights[0] * (dp[4 * j + 2 * h] - terms.y), weights[1] * (dp[4 * j + 2 * h + 1] - terms.w));
      }
    }
  }

  // Weights of keys that a row does not see are replaced by zero, not multiplied: a NaN among them stays out.
  static __device__ void mask(Weights& weights, const RowNotes& rows, int warpgroup) {
    const int key = 64 * warpgroup + own_row();
#pragma unroll
    for (int j = 0; j < ROWS / 8; j++) {
      const int2 limits = *reinterpret_cast<const int2*>(&rows.limits[8 * j + own_column()]);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        weights[2 * j + h] &= (key + 8 * h < limits.x ? 0xffffu : 0u) | (key + 8 * h < limits.y ? 0xffff0000u : 0u);
      }
    }
  }

  // Leaves ds to the team as it is multiplied with keys: a row a query, 64 keys of 128 bytes each.
  static __device__ void store_slopes(const Weights& ds, uint32_t ds_tile, int warpgroup) {
    const int lane = threadIdx.x % 32, row = lane / 16 * 8 + lane % 8, piece = threadIdx.x % 128 / 32 * 2 + lane / 8 % 2;
    const uint32_t target = ds_tile + warpgroup * 8192 + row * 128 + ((piece ^ (row & 7)) << 4);
#pragma unroll
    for (int kk = 0; kk < ROWS / 16; kk++) ptx::store_matrices_transposed(target + kk * 2048, ds + 4 * kk);
  }

  // Writes a thread's two rows of dq's parts as they lie in the registers, no elements exchanged between lanes.
  __device__ void store_slots(const SlotGradient& dq, const RowNotes& rows, int half) const {
    if (a.partial == nullptr) return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int slot = rows.targets[own_row() + 8 * h];
      if constexpr (packed::PACKS<T>) store_packed(dq, h, slot, half);
      else if (slot >= 0) store_whole(dq, h, slot, half);
    }
  }
  __device__ void store_packed(const SlotGradient& dq, int h, int slot, int half) const {
    float x[16];
#pragma unroll
    for (int i = 0; i < 16; i++) x[i] = dq[i / 2 * 4 + 2 * h + i % 2];
    packed::Row<64> row;
    row.pack(0, x, a.scale);
    if (slot < 0) return;
    row.template store_part<D>(a.partial, slot, half);
    if (threadIdx.x % 4 == 0) reinterpret_cast<uint16_t*>(a.steps)[2ll * slot + half] = row.steps;
  }
  __device__ void store_whole(const SlotGradient& dq, int h, int slot, int half) const {
    uint4* target = static_cast<uint4*>(a.partial) + static_cast<long long>(slot) * PIECES + half * 8 + threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      uint32_t w[4];
#pragma unroll
      for (int u = 0; u < 4; u++) {
        const int j = 16 * i + 4 * u + 2 * h;
        w[u] = pack<T>(dq[j] * a.scale, dq[j + 1] * a.scale);
      }
      __stcs(target + 4 * i, make_uint4(w[0], w[1], w[2], w[3]));
    }
  }

  // Writes the sums of an item: gradients of keys, or pieces of them.
  __device__ void store_sums(const Sums& dk, const Sums& dv, const TileNote& note, int warpgroup) const {
    if (a.dk == nullptr) return;
    const int key = 64 * warpgroup + own_row();
    if (note.piece < 0) {
      const long long stride = static_cast<long long>(a.heads / a.group) * D;
      const long long first = static_cast<long long>(note.key) * D;
      store_rows(dk, a.scale, static_cast<T*>(a.dk) + first, stride, key, note.keys);
      store_rows(dv, 1.0f, static_cast<T*>(a.dv) + first, stride, key, note.keys);
    } else {
      float* piece = a.pieces + 2ll * note.piece * a.chunk_keys * D;
      store_piece(dk, a.scale, piece, key, note.keys);
      store_piece(dv, 1.0f, piece + a.chunk_keys * D, key, note.keys);
    }
  }
  static __device__ void store_rows(const Sums& sum, float factor, T* target, long long stride, int key, int count) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      uint4* row = reinterpret_cast<uint4*>(target + (key + 8 * h) * stride) + threadIdx.x % 4;
#pragma unroll
      for (int i = 0; i < D / 32; i++) {
        uint32_t w[4];
#pragma unroll
        for (int u = 0; u < 4; u++) {
          const int j = 16 * i + 4 * u + 2 * h;
          w[u] = pack<T>(sum[j] * factor, sum[j + 1] * factor);
        }
        transpose_quad(w);
        if (key + 8 * h < count) row[4 * i] = make_uint4(w[0], w[1], w[2], w[3]);
      }
    }
  }
  static __device__ void store_piece(const Sums& sum, float factor, float* target, int key, int count) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      if (key + 8 * h >= count) continue;
      float* row = target + (key + 8 * h) * D + own_column();
#pragma unroll
      for (int j = 0; j < D / 8; j++) {
        const int i = 4 * j + 2 * h;
        *reinterpret_cast<float2*>(row + 8 * j) = make_float2(sum[i] * factor, sum[i + 1] * factor);
      }
    }
  }

  // ---- elements that are not finite, where rows do not see all keys -----------------------------------------------

  template <class U>
  static __device__ U& at(uint32_t shared) {
    return *reinterpret_cast<U*>(sharedMemory + (shared - ptx::shared_address(sharedMemory)));
  }

  // Whether q and dOut of a tile's rows are finite, as far as the rows' terms say: if not, these are not finite either.
  // The same in all warps.
  static __device__ bool finite_terms(const RowNotes& rows) {
    const float4 terms = *reinterpret_cast<const float4*>(&rows.terms[threadIdx.x % 32 * 2]);
    const float probe = fmaf(terms.x, 0.0f, terms.y * 0.0f) + fmaf(terms.z, 0.0f, terms.w * 0.0f);
    return !__any_sync(~0u, probe != 0);
  }

  // Takes elements that are not finite out of a tile, between its products with keys and values and those for dk and dv,
  // where a weight of zero would make a NaN of them. Those of dOut are to make a NaN of dv of the keys that their row
  // sees: that is noted. Of the pairs that those of q and dOut touch, ds is a NaN already.
  __device__ void take_out_non_finite(uint32_t queries, const RowNotes& rows) const {
    ptx::wgmma_wait<0>();
    ptx::named_barrier(3 + number, CONSUMERS);  // everyone's products are done
#pragma unroll 1
    for (int i = threadIdx.x % CONSUMERS * 4; i < 2 * TILE; i += CONSUMERS * 4) {
      uint32_t& word = at<uint32_t>(queries + i);
      const uint32_t bad = non_finite_halves<T>(word);
      if (bad == 0) continue;
      word &= ~bad;
      if (i < TILE) continue;
      const int row = i / 128 % ROWS, column = (i - TILE) / 8192 * 64 + ((i / 16 ^ row) % 8) * 8 + i % 16 / 2;
      if (bad & 0xffff) atomicMax(&team.touched[column], rows.limits[row]);
      if (bad >> 16) atomicMax(&team.touched[column + 1], rows.limits[row]);
      team.any_touched = 1;
    }
    ptx::proxy_fence();
    ptx::named_barrier(3 + number, CONSUMERS);
  }

  // Sets dv of an item to NaN where it was noted.
  __device__ void touch(Sums& dv, int warpgroup) const {
    const int key = 64 * warpgroup + own_row();
#pragma unroll
    for (int i = 0; i < D / 2; i++) {
      if (key + i / 2 % 2 * 8 < team.touched[i / 4 * 8 + own_column() + i % 2]) dv[i] = NAN;
    }
    ptx::named_barrier(3 + number, CONSUMERS);
    for (int i = threadIdx.x % CONSUMERS; i < D; i += CONSUMERS) team.touched[i] = 0;
    team.any_touched = 0;
    ptx::named_barrier(3 + number, CONSUMERS);
  }

  // Computes dq of a thread's rows once more from the keys that they see, if it came out not finite.
  __device__ void repair_slots(SlotGradient& dq, uint32_t ds_tile, uint32_t key_columns, const RowNotes& rows) const {
    float probe = 0;
#pragma unroll
    for (int i = 0; i < 32; i++) probe = fmaf(dq[i], 0.0f, probe);
    if (!__any_sync(~0u, probe != 0)) return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = own_row() + 8 * h, limit = rows.limits[row];
#pragma unroll
      for (int j = 0; j < 8; j++) dq[4 * j + 2 * h] = dq[4 * j + 2 * h + 1] = 0;
#pragma unroll 1
      for (int key = 0; key < limit; key++) {
        const uint32_t piece = ds_tile + key / 64 * 8192 + row * 128 + ((key / 8 % 8 ^ (row & 7)) << 4);
        const float ds = to_float(at<T>(piece + key % 8 * 2));
#pragma unroll
        for (int j = 0; j < 8; j++) {
          float x[2];
          unpack_pair<T>(x, at<uint32_t>(key_columns + key * 128 + ((j ^ (key & 7)) << 4) + 2 * own_column()));
          dq[4 * j + 2 * h] += ds * x[0];
          dq[4 * j + 2 * h + 1] += ds * x[1];
        }
      }
    }
  }
};

// Registers that the CTA was launched with are shared out between the consumers and the producers. As few as the consumers of
// d = 128 have are enough only if scores of the next tile do not begin before dk is done.
#define MOBA_BACKWARD(NAME, T, D, KEYS, KEY_STAGES, VALUE_STAGES, TILE_STAGES, CONSUMER, PRODUCER)                \
  extern "C" __global__ void __launch_bounds__(384, 1) NAME(const __grid_constant__ BackwardArguments arguments) { \
    using Kernel = Backward<T, D, KEYS, KEY_STAGES, VALUE_STAGES, TILE_STAGES>;                                  \
    __shared__ Kernel::Team teams[Kernel::TEAMS];                                                                \
    if (threadIdx.x < Kernel::TEAMS) Kernel(arguments, teams, threadIdx.x).init();                               \
    __syncthreads();                                                                                             \
    if (threadIdx.x >= 256) {                                                                                    \
      asm volatile("setmaxnreg.dec.sync.aligned.u32 " #PRODUCER ";");                                            \
      Kernel(arguments, teams, threadIdx.x % 128 / Kernel::PRODUCERS).produce();                                 \
    } else {                                                                                                     \
      asm volatile("setmaxnreg.inc.sync.aligned.u32 " #CONSUMER ";");                                            \
      const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0), members = Kernel::CONSUMERS / 128;           \
      Kernel(arguments, teams, warpgroup / members).consume(warpgroup % members);                                \
    }                                                                                                            \
  }
#define MOBA_BACKWARD_BOTH(NAME, ...)                                \
  MOBA_BACKWARD(sm90_attend_backward_bf16_##NAME, bf16, __VA_ARGS__) \
  MOBA_BACKWARD(sm90_attend_backward_f16_##NAME, f16, __VA_ARGS__)

// Chunks of at most 64 or 128 keys.
MOBA_BACKWARD_BOTH(d128_b128, 128, 128, 2, 1, 3, 224, 56)
MOBA_BACKWARD_BOTH(d128_b64, 128, 64, 1, 1, 2, 224, 56)
MOBA_BACKWARD_BOTH(d64_b128, 64, 128, 2, 2, 6, 216, 72)
MOBA_BACKWARD_BOTH(d64_b64, 64, 64, 2, 2, 4, 216, 72)
