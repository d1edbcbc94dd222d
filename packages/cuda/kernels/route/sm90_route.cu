// Block routing on Hopper: q · centroid on tensor cores, the best blocks of each query kept in registers. Nothing but the
// chosen indices is written.
//
// Persistent. A producer warp brings tiles of queries and of centroids by the copy engine, ahead across work items; each
// consumer warpgroup takes 64 queries of an item and walks over the item's centroids. Centroids are rounded to the dtype
// of q and scores truncated to carry their block, so the last chosen block and the first one left out are scored again
// in float32 when they come close.
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
      const int row = head / a.group * a.total_blocks + range.first_key_block;
      for (int block = 0; block < candidates(range); block += 128, tile++) {
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
      const int lowest = __reduce_min_sync(~0u, min(limit0, limit1));
      const int highest = __reduce_max_sync(~0u, max(limit0, limit1));
      float best0[L], best1[L];
#pragma unroll
      for (int i = 0; i < L; i++) best0[i] = best1[i] = -INFINITY;

      ptx::barrier_wait(ptx::shared_address(&shared.query_full[stage]), round / 2 & 1);
      for (int block = 0; block < candidates(range); block += 128, tile++) {
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
        if (block < highest) take(best0, best1, s, block, lowest, highest, limit0, limit1);
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

  // Takes the scores of 128 blocks into the lists of the thread's two rows.
  __device__ void take(float (&best0)[L], float (&best1)[L], float (&s)[64], int block, int lowest, int highest, int limit0,
                       int limit1) const {
    float probes[4] = {};
#pragma unroll
    for (int j = 0; j < 64; j++) probes[j % 4] = fmaf(s[j], 0.f, probes[j % 4]);
    if (__any_sync(~0u, (probes[0] + probes[1]) + (probes[2] + probes[3]) != 0.f)) {  // keys must be finite; NaN counts as −Infinity
#pragma unroll
      for (int j = 0; j < 64; j++) s[j] = fminf(fmaxf(s[j], -3.4e38f), 3.4e38f);
    }
    const bool masked = block + 128 > lowest;
    if (__all_sync(~0u, fminf(best0[L - 1], best1[L - 1]) > 0.f)) make_keys<true>(s, block, masked, limit0, limit1);
    else make_keys<false>(s, block, masked, limit0, limit1);
    if (block > 0) {
      take_late<0>(best0, s, block >= 1024);
      take_late<2>(best1, s, block >= 1024);
      return;
    }
#pragma unroll
    for (int g = 0; g < 4; g++) {
      if (32 * g >= highest) continue;
      float x[8], y[8];
#pragma unroll
      for (int j = 0; j < 8; j++) {
        x[j] = s[16 * g + 4 * (j / 2) + j % 2];
        y[j] = s[16 * g + 4 * (j / 2) + 2 + j % 2];
      }
      insert_8(best0, x);
      insert_8(best1, y);
    }
  }

  // Makes keys of the scores of the blocks from `block` on. `Positive`: the lists hold positive scores only, so that others need no
  // right key: theirs are negative.
  template <bool Positive>
  __device__ void make_keys(float (&s)[64], int block, bool masked, int limit0, int limit1) const {
    const int column = block + 2 * (threadIdx.x & 3), above = column ^ a.mask;
#pragma unroll
    for (int j = 0; j < 64; j++) {
      const int offset = 8 * (j / 4) + j % 2;
      s[j] = Positive ? positive_key(s[j], above ^ offset, a.mask) : key_of(s[j], column | offset, a.mask);
    }
    if (!masked) return;
#pragma unroll
    for (int j = 0; j < 64; j++) {
      if (column + 8 * (j / 4) + j % 2 >= (j % 4 < 2 ? limit0 : limit1)) s[j] = -INFINITY;
    }
  }

  // Takes one row's keys when most of its best are found already: the winners of fours, and the others only where one of
  // them can still be among the best. `ask`: ask first whether even a winner can.
  template <int Row>
  __device__ void take_late(float (&best)[L], float (&s)[64], bool ask) const {
    const float bound = quad_bound(best);
    float winners[8], seconds[8], losers[2][8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float *x = s + 8 * i + Row, *y = x + 4;
      order(x[0], x[1]);
      order(y[0], y[1]);
      order(x[0], y[0]);
      winners[i] = x[0];
      seconds[i] = y[0];
      losers[0][i] = x[1];
      losers[1][i] = y[1];
    }
    if (ask && !__any_sync(~0u, greatest(winners) > bound)) return;
    insert_8(best, winners);
    if (__any_sync(~0u, greatest(seconds) > bound)) insert_8(best, seconds);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      if (__any_sync(~0u, greatest(losers[i]) > bound)) insert_8(best, losers[i]);
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

// Registers that the CTA was launched with are shared out between the consumers and the producers.
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
      kernel.consume(threadIdx.x / 128);                                                                               \
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
