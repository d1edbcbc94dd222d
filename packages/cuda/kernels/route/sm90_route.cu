// Block routing on Hopper: q · centroid on tensor cores, the best blocks of each query kept in registers. Nothing but the
// chosen indices is written.
//
// Persistent. A producer warp brings tiles of queries and of centroids by the copy engine, ahead across work items; each
// consumer warpgroup takes 64 queries of an item and walks over the item's centroids. The first scores are sorted in by
// networks; of later ones few are among the best so far, and those are picked out. Minima, maxima and selects run at half
// the rate of multiply-adds, so it is the latter that look for them.
// Centroids are rounded to the dtype of q and scores truncated to carry their block, so the last chosen block and the
// first one left out are scored again in float32 when they come close.
#include "common/pairs.cuh"
#include "common/range.cuh"
#include "common/shared.cuh"
#include "common/sorted_keys.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

struct RouteArguments {
  ptx::TensorMap query_map;     // [T, H * d], boxes of 64 rows and 64 columns
  ptx::TensorMap centroid_map;  // [Hkv * blocks, d] in the dtype of q, boxes of 128 rows and 64 columns
  const float* centroids;       // [blocks, Hkv, d]
  const Range* ranges;          // of as many queries as a CTA has rows, at most
  int* indices;                 // [T, H, slots]
  int range_count, heads, group, total_blocks, slots, block_size, causal;
  int mask;  // 2^b − 1, at least the highest block
};

template <class T, int D, int L, int Warpgroups>
struct Route {
  static constexpr int QUERIES = 64 * D * 2;     // bytes of a warpgroup's queries
  static constexpr int HALF = 128 * 128;         // bytes of 64 columns of a tile of centroids
  static constexpr int CENTROIDS = 128 * D * 2;  // bytes of a tile of centroids
  static constexpr int STAGES = 3;               // of centroids
  static constexpr int SHARED = 2 * Warpgroups * QUERIES + STAGES * CENTROIDS + 1024;
  static constexpr int THREADS = 128 * Warpgroups + 128;
  static constexpr int MOST_PICKED = 6;  // scores of a thread's row in a tile; more are sorted in sooner

  struct Shared {
    uint64_t query_full[2], query_empty[2], centroid_full[STAGES], centroid_empty[STAGES];
  };

  const RouteArguments& a;
  Shared& shared;
  uint32_t queries, centroids;  // shared addresses

  __device__ Route(const RouteArguments& arguments, Shared& shared_state) : a(arguments), shared(shared_state) {
    queries = (ptx::shared_address(sharedMemory) + 1023) & ~1023u;
    centroids = queries + 2 * Warpgroups * QUERIES;
  }

  __device__ void init() const {
    for (int i = 0; i < 2; i++) {
      ptx::barrier_init(ptx::shared_address(&shared.query_full[i]), 1);
      ptx::barrier_init(ptx::shared_address(&shared.query_empty[i]), 4 * Warpgroups);
    }
    for (int i = 0; i < STAGES; i++) {
      ptx::barrier_init(ptx::shared_address(&shared.centroid_full[i]), 1);
      ptx::barrier_init(ptx::shared_address(&shared.centroid_empty[i]), 4 * Warpgroups);
    }
    ptx::barrier_init_fence();
  }

  // Late ranges have the most candidates: they go first.
  __device__ int range_of(int item) const { return a.range_count - 1 - item / a.heads; }
  __device__ int items() const { return a.range_count * a.heads; }

  // Blocks that some query of a range chooses from.
  __device__ int candidates(const Range& range) const {
    return a.causal ? max(own_block(range.first_position + range.queries - 1, a.block_size), 0) : range.blocks;
  }

  __device__ void produce() const {
    int tile = 0, round = 0;
    for (int item = blockIdx.x; item < items(); item += gridDim.x, round++) {
      const Range range = a.ranges[range_of(item)];
      const int head = item % a.heads, stage = round % 2;
      const uint32_t full = ptx::shared_address(&shared.query_full[stage]);
      ptx::barrier_wait(ptx::shared_address(&shared.query_empty[stage]), (round / 2 & 1) ^ 1);
      ptx::barrier_arrive_expect(full, Warpgroups * QUERIES);
      for (int i = 0; i < Warpgroups; i++) {
        for (int half = 0; half < D / 64; half++) {
          ptx::tma_load(queries + (stage * Warpgroups + i) * QUERIES + half * 8192, &a.query_map, full,
                        head * D + half * 64, range.query_begin + i * 64);
        }
      }
      const int row = head / a.group * a.total_blocks + range.first_key_block, count = candidates(range);
      for (int block = 0; block < count; block += 128, tile++) {
        const int at = tile % STAGES;
        const uint32_t arrival = ptx::shared_address(&shared.centroid_full[at]);
        ptx::barrier_wait(ptx::shared_address(&shared.centroid_empty[at]), (tile / STAGES & 1) ^ 1);
        ptx::barrier_arrive_expect(arrival, CENTROIDS);
        for (int half = 0; half < D / 64; half++) {
          ptx::tma_load(centroids + at * CENTROIDS + half * HALF, &a.centroid_map, arrival, half * 64, row + block);
        }
      }
    }
  }

  __device__ void consume(int warpgroup) const {
    const int lane = threadIdx.x % 32, r = threadIdx.x % 128 / 32 * 16 + lane / 4;
    int tile = 0, round = 0;
    for (int item = blockIdx.x; item < items(); item += gridDim.x, round++) {
      const Range range = a.ranges[range_of(item)];
      const int head = item % a.heads, stage = round % 2;
      const uint32_t my_queries = queries + (stage * Warpgroups + warpgroup) * QUERIES;
      // This thread's two rows, and the blocks that they choose from: those below a limit.
      const int row0 = warpgroup * 64 + r, row1 = row0 + 8;
      const int own0 = a.causal ? own_block(range.first_position + row0, a.block_size) : -1;
      const int own1 = a.causal ? own_block(range.first_position + row1, a.block_size) : -1;
      const int limit0 = row0 >= range.queries ? 0 : a.causal ? max(own0, 0) : range.blocks;
      const int limit1 = row1 >= range.queries ? 0 : a.causal ? max(own1, 0) : range.blocks;
      const int count = candidates(range);
      const int lowest = __reduce_min_sync(~0u, min(limit0, limit1));
      const int highest = __reduce_max_sync(~0u, max(limit0, limit1));
      float best0[L], best1[L];
#pragma unroll
      for (int i = 0; i < L; i++) best0[i] = best1[i] = -INFINITY;
      Floor floor0, floor1;
      bool sparse = false;       // there are floors
      int next_floors = 32 * L;  // the block where they are raised next: whenever half as many again are behind

      ptx::barrier_wait(ptx::shared_address(&shared.query_full[stage]), round / 2 & 1);
      for (int block = 0; block < count; block += 128, tile++) {
        const int at = tile % STAGES;
        ptx::barrier_wait(ptx::shared_address(&shared.centroid_full[at]), tile / STAGES & 1);
        const uint64_t query_tile = ptx::descriptor_k_major(my_queries);
        const uint64_t centroid_tile = ptx::descriptor_k_major(centroids + at * CENTROIDS);
        float s[64];
        ptx::wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++) {
          const uint64_t x = query_tile + ptx::descriptor_offset((kk >> 2) * 8192 + (kk & 3) * 32);
          const uint64_t y = centroid_tile + ptx::descriptor_offset((kk >> 2) * HALF + (kk & 3) * 32);
          if (kk == 0) ptx::wgmma_abt_first(s, x, y, T{});
          else ptx::wgmma_abt_more(s, x, y, T{});
        }
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        if (lane == 0) ptx::barrier_arrive(ptx::shared_address(&shared.centroid_empty[at]));
        if (block >= highest) continue;
        if (block >= next_floors) {
          const bool raised0 = floor0.raise(quad_least(best0), a.mask) || limit0 <= block;
          const bool raised1 = floor1.raise(quad_least(best1), a.mask) || limit1 <= block;
          sparse = __all_sync(~0u, raised0 && raised1);
          next_floors = block + (block >> 8 << 7);
        }
        const bool pick0 = sparse && pick<0>(best0, s, floor0, block, lowest, limit0);
        const bool pick1 = sparse && pick<2>(best1, s, floor1, block, lowest, limit1);
        if (!pick0 || !pick1) sort_in(best0, best1, s, !pick0, !pick1, block, lowest, highest, limit0, limit1);
      }
      merge_quad(best0);
      merge_quad(best1);
      reconsider(best0, r, my_queries, range, head);
      reconsider(best1, r + 8, my_queries, range, head);
      if (lane == 0) ptx::barrier_arrive(ptx::shared_address(&shared.query_empty[stage]));
      int* rows = a.indices + (static_cast<long long>(range.query_begin) * a.heads + head) * a.slots;
      if (row0 < range.queries) write(best0, rows + static_cast<long long>(row0) * a.heads * a.slots, own0, limit0);
      if (row1 < range.queries) write(best1, rows + static_cast<long long>(row1) * a.heads * a.slots, own1, limit1);
    }
  }

  // Sorts the scores of 128 blocks into the lists of the thread's two rows, or into one of them.
  __device__ void sort_in(float (&best0)[L], float (&best1)[L], float (&s)[64], bool first, bool second, int block,
                          int lowest, int highest, int limit0, int limit1) const {
    float probes[4] = {};
#pragma unroll
    for (int j = 0; j < 64; j++) probes[j % 4] = fmaf(s[j], 0.f, probes[j % 4]);
    // Keys must be finite; NaN counts as −Infinity.
    if (__any_sync(~0u, (probes[0] + probes[1]) + (probes[2] + probes[3]) != 0.f)) {
#pragma unroll
      for (int j = 0; j < 64; j++) s[j] = fminf(fmaxf(s[j], -3.4e38f), 3.4e38f);
    }
#pragma unroll
    for (int g = 0; g < 4; g++) {
      if (block + 32 * g >= highest) continue;
      const int column = block + 32 * g + 2 * (threadIdx.x & 3);
      const bool masked = block + 32 * g + 32 > lowest;
      const bool empty = g == 0 && block == 0;
      if (first) insert_scores(best0, s + 16 * g, column, masked, limit0, empty);
      if (second) insert_scores(best1, s + 16 * g + 2, column, masked, limit1, empty);
    }
  }

  // Takes the scores s[0], s[1], s[4], s[5] … s[13] of the blocks column, column + 1, column + 8, column + 9 … into a
  // list, which may be empty yet.
  __device__ void insert_scores(float (&best)[L], const float* s, int column, bool masked, int limit, bool empty) const {
    float x[8];
    // Once a row has L positive scores, others need no right key: theirs are negative.
    if (__all_sync(~0u, best[L / 4 - 1] > 0.f)) {
      const int above = column ^ a.mask;
#pragma unroll
      for (int j = 0; j < 8; j++) x[j] = positive_key(s[4 * (j / 2) + j % 2], above ^ offset_of(j), a.mask);
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++) x[j] = key_of(s[4 * (j / 2) + j % 2], column | offset_of(j), a.mask);
    }
    if (masked) {
#pragma unroll
      for (int j = 0; j < 8; j++) x[j] = offset_of(j) < limit - column ? x[j] : -INFINITY;
    }
    sort_8(x);
    if (empty) {
#pragma unroll
      for (int j = 0; j < 8; j++) best[j] = x[j];
    } else {
      merge_8(best, x);
    }
  }

  // From a thread's first block of a tile to its j-th.
  __device__ static constexpr int offset_of(int j) { return 8 * (j / 2) + j % 2; }

  // A row's scores that can still be among its best lie above its floor.
  struct Floor {
    float scale, offset;  // score · scale + offset: at least 1 above the floor, at most 0 elsewhere

    // 1 or 0; 0 for NaN.
    __device__ float has_below(float score) const { return __saturatef(fmaf(score, scale, offset)); }

    // Takes the L-th greatest key so far. Returns whether a scale can tell even neighbours of the floor apart.
    __device__ bool raise(float key, int mask) {
      // A later block with the same truncated score is no better.
      const int bits = __float_as_int(key), floor = bits < 0 ? bits & ~mask : bits | mask;
      const uint32_t exponent = floor >> 23 & 255;
      scale = __uint_as_float((278 - exponent) << 23);  // 2^24 over that power of two
      offset = -__int_as_float(floor) * scale;
      return exponent >= 24 && exponent < 255;
    }
  };

  // Picks one row's scores above the floor from those of 128 blocks, into its list. Returns false, and takes none, when
  // they are many.
  template <int Row>
  __device__ bool pick(float (&best)[L], const float (&s)[64], const Floor& floor, int block, int lowest, int limit) const {
    // Which of the thread's 32 scores are: bit j for the j-th, in the low bits of two numbers.
    float low = 0x1p23f, high = 0x1p23f;
#pragma unroll
    for (int j = 0; j < 16; j++) {
      low = fmaf(floor.has_below(s[4 * (j / 2) + Row + j % 2]), static_cast<float>(1 << j), low);
      high = fmaf(floor.has_below(s[4 * (j / 2) + 32 + Row + j % 2]), static_cast<float>(1 << j), high);
    }
    uint32_t left = __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x5410);
    const int column = block + 2 * (threadIdx.x & 3);
    if (block + 128 > lowest) {
      const int in = max(limit - column, 0), count = 2 * (in >> 3) + min(in & 7, 2);
      if (count < 32) left &= (1u << count) - 1;
    }
    if (__any_sync(~0u, __popc(left) > MOST_PICKED)) return false;
    while (__any_sync(~0u, left != 0)) {
      const int j = 31 - __clz(left);
      const float score = fminf(element<Row, 0, 16>(s, j), 3.4e38f);
      const float key = key_of(score, column + offset_of(j), a.mask);
      insert_1(best, left != 0 ? key : -INFINITY);
      left &= ~(1u << (j & 31));
    }
    return true;
  }

  // The j-th score of a row's 32, where j − First < 2 · Half.
  template <int Row, int First, int Half>
  __device__ static float element(const float (&s)[64], int j) {
    if constexpr (Half == 0) return s[4 * (First / 2) + Row + First % 2];
    else {
      const float low = element<Row, First, Half / 2>(s, j), high = element<Row, First + Half, Half / 2>(s, j);
      return j & Half ? high : low;
    }
  }

  // Decides between the last chosen block and the first one left out in float32, when they are close. A quad scores the
  // row that its lists belong to, a lane d/4 channels.
  __device__ void reconsider(float (&best)[L], int r, uint32_t my_queries, const Range& range, int head) const {
    const int wanted = a.slots - a.causal;  // less than L
    float last = 0, spare = -INFINITY;
#pragma unroll
    for (int i = 1; i < L; i++) {
      if (i == wanted) last = best[i - 1], spare = best[i];
    }
    const bool close = spare > -INFINITY && last - spare <= fmaxf(fabsf(best[0]), fabsf(spare)) * (1.f / 512);
    if (!__any_sync(~0u, close)) return;
    const int lane = threadIdx.x & 3, kv_heads = a.heads / a.group;
    const int block0 = column_of(last, a.mask), block1 = column_of(spare, a.mask);
    auto centroid = [&](int block) {
      return a.centroids + (static_cast<long long>(range.first_key_block + (close ? block : 0)) * kv_heads + head / a.group) * D;
    };
    const float *centroid0 = centroid(block0), *centroid1 = centroid(block1);
    float score0 = 0, score1 = 0;
#pragma unroll
    for (int i = 0; i < D / 32; i++) {
      const int piece = 4 * i + lane;
      const uint4 words = ptx::load_shared_16(my_queries + (piece >> 3) * 8192 + r * 128 + (((piece & 7) ^ (r & 7)) << 4));
      const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float x[2], y[2];
        unpack_pair<T>(x, pairs[2 * half]);
        unpack_pair<T>(y, pairs[2 * half + 1]);
        const float4 c0 = *reinterpret_cast<const float4*>(centroid0 + piece * 8 + half * 4);
        const float4 c1 = *reinterpret_cast<const float4*>(centroid1 + piece * 8 + half * 4);
        score0 += x[0] * c0.x + x[1] * c0.y + y[0] * c0.z + y[1] * c0.w;
        score1 += x[0] * c1.x + x[1] * c1.y + y[0] * c1.z + y[1] * c1.w;
      }
    }
#pragma unroll
    for (int o = 1; o < 4; o *= 2) {
      score0 += __shfl_xor_sync(~0u, score0, o);
      score1 += __shfl_xor_sync(~0u, score1, o);
    }
    if (close && (score1 > score0 || (score1 == score0 && block1 < block0))) {
#pragma unroll
      for (int i = 1; i < L; i++) {
        if (i == wanted) best[i - 1] = spare;
      }
    }
  }

  // Writes a row of the result: the chosen blocks, the best first, then the own one. Every lane of the quad has the list.
  __device__ void write(const float (&best)[L], int* row, int own, int limit) const {
    const int lane = threadIdx.x & 3, chosen = min(a.slots - a.causal, limit);
    auto slot = [&](int i, float key) {
      return i < chosen ? column_of(key, a.mask) : own >= 0 && i == chosen ? own : -1;
    };
    if (L == 8 && a.slots == 8) {  // two a lane
      float2 mine = {best[0], best[1]};
      if (lane == 1) mine = {best[2], best[3]};
      if (lane == 2) mine = {best[4], best[5]};
      if (lane == 3) mine = {best[6], best[7]};
      *reinterpret_cast<int2*>(row + 2 * lane) = make_int2(slot(2 * lane, mine.x), slot(2 * lane + 1, mine.y));
    } else {
#pragma unroll
      for (int i = 0; i < L; i++) {
        if (i < a.slots && i % 4 == lane) row[i] = slot(i, best[i]);
      }
    }
  }
};

// Registers that the CTA was launched with are shared out between the consumers and the producers. By the shuffle the
// compiler knows that a warp has one number, and keeps addresses in uniform registers.
#define MOBA_ROUTE(NAME, T, D, L, WARPGROUPS, CONSUMER, PRODUCER)                                                      \
  extern "C" __global__ void __launch_bounds__(128 * WARPGROUPS + 128, 1)                                              \
      NAME(const __grid_constant__ RouteArguments arguments) {                                                         \
    using Kernel = Route<T, D, L, WARPGROUPS>;                                                                         \
    __shared__ Kernel::Shared shared;                                                                                  \
    const Kernel kernel(arguments, shared);                                                                            \
    if (threadIdx.x == 0) kernel.init();                                                                               \
    __syncthreads();                                                                                                   \
    if (threadIdx.x >= 128 * WARPGROUPS) {                                                                             \
      asm volatile("setmaxnreg.dec.sync.aligned.u32 " #PRODUCER ";");                                                  \
      if (threadIdx.x == 128 * WARPGROUPS) kernel.produce();                                                           \
    } else {                                                                                                           \
      asm volatile("setmaxnreg.inc.sync.aligned.u32 " #CONSUMER ";");                                                  \
      kernel.consume(__shfl_sync(~0u, threadIdx.x / 128, 0));                                                          \
    }                                                                                                                  \
  }
#define MOBA_ROUTE_BOTH(NAME, ...)                        \
  MOBA_ROUTE(sm90_route_bf16_##NAME, bf16, __VA_ARGS__) \
  MOBA_ROUTE(sm90_route_f16_##NAME, f16, __VA_ARGS__)

// Lists of 8 or 16: one more than the blocks to choose by score, at least.
MOBA_ROUTE_BOTH(d128_l8, 128, 8, 4, 112, 32)
MOBA_ROUTE_BOTH(d128_l16, 128, 16, 3, 160, 32)
MOBA_ROUTE_BOTH(d64_l8, 64, 8, 4, 112, 32)
MOBA_ROUTE_BOTH(d64_l16, 64, 16, 3, 160, 32)
