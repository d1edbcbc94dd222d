// Block routing on Hopper: q · centroid on tensor cores, the best blocks of each query kept in registers. Nothing but the
// chosen indices is written.
//
// Persistent. Two producer warps bring queries and tiles of centroids by the copy engine; each consumer warpgroup takes 64
// queries of an item and walks over the item's centroids. The first scores are sorted in by networks; of later ones few can
// still be among the best, and those wait in shared memory until there are eight to sort. Tiles are small, so that there are
// registers for many warps and the code stays in the cache.
// Centroids are rounded to the dtype of q and scores truncated to carry their block, so the last chosen block and the
// first one left out are scored again in float32 when they come close.
#include "common/divide.cuh"
#include "common/elements.cuh"
#include "common/range.cuh"
#include "common/shared.cuh"
#include "common/sorted_keys.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

struct RouteArguments {
  ptx::TensorMap query_map;     // [T, H * d], boxes of 64 rows and 64 columns
  ptx::TensorMap centroid_map;  // [Hkv * blocks, d] in the dtype of q, boxes of 64 rows and 64 columns
  const void* q;
  const void* centroids;        // f32 [blocks, Hkv, d]
  const Range* ranges;          // of as many queries as a CTA has rows, at most
  int* indices;                 // [T, H, slots]
  int range_count, heads, group, total_blocks, slots, block_size, causal;
  int mask;  // 2^b − 1, at least the highest block
};

template <class T, int D, int L>
struct Route {
  static constexpr int WARPGROUPS = 5;           // of consumers
  static constexpr int QUERIES = 64 * D * 2;     // bytes of a warpgroup's queries
  static constexpr int TILE = 64;                // centroids of a tile
  static constexpr int CENTROIDS = TILE * D * 2;
  static constexpr int STAGES = 4;               // of centroids
  static constexpr int PLACE = 4 * 32;           // bytes of a warp's keys that wait in the same place
  static constexpr int PLACES = 16;              // of a row: for 8 that wait and those of 8 more scores
  static constexpr int SHARED = WARPGROUPS * QUERIES + STAGES * CENTROIDS + 8 * WARPGROUPS * PLACES * PLACE + 1024;
  static constexpr int THREADS = 128 * WARPGROUPS + 128;

  struct Item {
    Range range;
    int head;
  };

  struct Shared {
    Item items[2][WARPGROUPS];  // the one whose queries are there, and the one before or after it
    uint64_t query_full[WARPGROUPS], query_empty[WARPGROUPS], centroid_full[STAGES], centroid_empty[STAGES];
  };

  const RouteArguments& a;
  Shared& shared;
  uint32_t queries, centroids, waiting;  // shared addresses

  __device__ Route(const RouteArguments& arguments, Shared& shared_state) : a(arguments), shared(shared_state) {
    queries = (ptx::shared_address(sharedMemory) + 1023) & ~1023u;
    centroids = queries + WARPGROUPS * QUERIES;
    waiting = centroids + STAGES * CENTROIDS;
  }

  __device__ void init() const {
    for (int i = 0; i < WARPGROUPS; i++) {
      ptx::barrier_init(ptx::shared_address(&shared.query_full[i]), 1);
      ptx::barrier_init(ptx::shared_address(&shared.query_empty[i]), 4);
    }
    for (int i = 0; i < STAGES; i++) {
      ptx::barrier_init(ptx::shared_address(&shared.centroid_full[i]), 1);
      ptx::barrier_init(ptx::shared_address(&shared.centroid_empty[i]), 4 * WARPGROUPS);
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

  __device__ void produce_queries() const {
    int round = 0;
    for (int item = blockIdx.x; item < items(); item += gridDim.x, round++) {
      const Item next{a.ranges[range_of(item)], item % a.heads};
      for (int i = 0; i < WARPGROUPS; i++) {
        const uint32_t full = ptx::shared_address(&shared.query_full[i]);
        ptx::barrier_wait(ptx::shared_address(&shared.query_empty[i]), (round & 1) ^ 1);
        shared.items[round & 1][i] = next;
        ptx::barrier_arrive_expect(full, QUERIES);
        for (int half = 0; half < D / 64; half++) {
          ptx::tma_load(queries + i * QUERIES + half * 8192, &a.query_map, full, next.head * D + half * 64,
                        next.range.query_begin + i * 64);
        }
      }
    }
  }

  __device__ void produce_centroids() const {
    int tile = 0;
    for (int item = blockIdx.x; item < items(); item += gridDim.x) {
      const Range& range = a.ranges[range_of(item)];
      const int head = item % a.heads, row = head / a.group * a.total_blocks + range.first_key_block;
      const int count = candidates(range);
      for (int block = 0; block < count; block += TILE, tile++) {
        const int stage = tile % STAGES;
        const uint32_t full = ptx::shared_address(&shared.centroid_full[stage]);
        ptx::barrier_wait(ptx::shared_address(&shared.centroid_empty[stage]), (tile / STAGES & 1) ^ 1);
        ptx::barrier_arrive_expect(full, CENTROIDS);
        for (int half = 0; half < D / 64; half++) {
          ptx::tma_load(centroids + stage * CENTROIDS + half * 8192, &a.centroid_map, full, half * 64, row + block);
        }
      }
    }
  }

  __device__ void consume(int warpgroup) const {
    const int lane = threadIdx.x % 32, r = threadIdx.x % 128 / 32 * 16 + lane / 4;
    const uint32_t my_queries = queries + warpgroup * QUERIES;
    const uint32_t places = waiting + threadIdx.x / 32 * (2 * PLACES * PLACE) + 4 * lane;
    const uint32_t block_inverse = inverse_of(a.block_size);
    int tile = 0, round = 0;
    for (int item = blockIdx.x; item < items(); item += gridDim.x, round++) {
      ptx::barrier_wait(ptx::shared_address(&shared.query_full[warpgroup]), round & 1);
      const Item& mine = shared.items[round & 1][warpgroup];
      const Range& range = mine.range;
      // This thread's two rows, and the blocks that they choose from: those below a limit.
      const int row0 = warpgroup * 64 + r, count = candidates(range);
      const auto limit_of = [&](int row) {
        const int position = range.first_position + row;
        if (row >= range.queries) return 0;
        return !a.causal ? range.blocks : position < 0 ? 0 : divide(position, a.block_size, block_inverse);
      };
      const int limit0 = limit_of(row0), limit1 = limit_of(row0 + 8);
      const int lowest = __reduce_min_sync(~0u, min(limit0, limit1));
      const int highest = __reduce_max_sync(~0u, max(limit0, limit1));
      List list0(places), list1(places + PLACES * PLACE);
      bool floors = false;  // whether both rows of all lanes have theirs

      for (int block = 0; block < count; block += TILE, tile++) {
        const int stage = tile % STAGES;
        ptx::barrier_wait(ptx::shared_address(&shared.centroid_full[stage]), tile / STAGES & 1);
        const uint64_t query_tile = ptx::descriptor_k_major(my_queries);
        const uint64_t centroid_tile = ptx::descriptor_k_major(centroids + stage * CENTROIDS);
        float s[TILE / 2];
        ptx::wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++) {
          const uint64_t offset = ptx::descriptor_offset((kk >> 2) * 8192 + (kk & 3) * 32);
          if (kk == 0) ptx::wgmma_abt_first(s, query_tile + offset, centroid_tile + offset, T{});
          else ptx::wgmma_abt_more(s, query_tile + offset, centroid_tile + offset, T{});
        }
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        if (lane == 0) {
          ptx::barrier_arrive(ptx::shared_address(&shared.centroid_empty[stage]));
          if (block + TILE >= count) ptx::barrier_arrive(ptx::shared_address(&shared.query_empty[warpgroup]));
        }
        if (block >= highest) continue;
        const int column = block + 2 * (lane & 3);
        if (!floors) {
          make_finite(s);
#pragma unroll
          for (int g = 0; g < TILE / 32; g++) {
            if (block + 32 * g >= highest) continue;
            list0.sort_in(s + 16 * g, column + 32 * g, limit0, a.mask, g == 0 && block == 0);
            list1.sort_in(s + 16 * g + 2, column + 32 * g, limit1, a.mask, g == 0 && block == 0);
          }
          list0.raise_floor(a.mask);
          list1.raise_floor(a.mask);
          const int next = block + TILE;
          floors = __all_sync(~0u, (list0.floor > -INFINITY || limit0 <= next) && (list1.floor > -INFINITY || limit1 <= next));
          continue;
        }
        if (block + TILE > lowest) {
          mask<0>(s, limit0 - column);
          mask<2>(s, limit1 - column);
        }
#pragma unroll
        for (int g = 0; g < TILE / 32; g++) {
#pragma unroll
          for (int j = 0; j < 8; j++) {
            const int above = (column + 32 * g) ^ a.mask ^ offset_of(j);
            list0.offer(s[16 * g + element_of(j)], above, a.mask);
            list1.offer(s[16 * g + element_of(j) + 2], above, a.mask);
          }
          if (__any_sync(~0u, list0.waits() > 8 * PLACE)) list0.take_waiting(a.mask);
          if (__any_sync(~0u, list1.waits() > 8 * PLACE)) list1.take_waiting(a.mask);
        }
      }
      if (__any_sync(~0u, list0.waits() > 0)) list0.take_waiting(a.mask);
      if (__any_sync(~0u, list1.waits() > 0)) list1.take_waiting(a.mask);
      // Two lanes of a quad get the upper row, two the lower one.
      const int lower = lane & 1, row = row0 + 8 * lower, limit = lower ? limit1 : limit0;
      float best[L];
      merge_quad(best, list0.best, list1.best);
      const long long query = static_cast<long long>(range.query_begin + row) * a.heads + mine.head;
      reconsider(best, query, static_cast<long long>(range.first_key_block) * (a.heads / a.group) + mine.head / a.group);
      const int own = a.causal && range.first_position + row >= 0 ? limit : -1;
      if (row < range.queries) write(best, a.indices + query * a.slots, own, limit);
      if (count <= 0 && lane == 0) ptx::barrier_arrive(ptx::shared_address(&shared.query_empty[warpgroup]));
    }
  }

  // From a thread's first block of 32 to its j-th, and where that one's score is among those of the thread's two rows.
  __device__ static constexpr int offset_of(int j) { return 8 * (j / 2) + j % 2; }
  __device__ static constexpr int element_of(int j) { return 4 * (j / 2) + j % 2; }

  // Keys must be finite; NaN counts as −Infinity.
  static __device__ void make_finite(float (&s)[TILE / 2]) {
    float probes[4] = {};
#pragma unroll
    for (int j = 0; j < TILE / 2; j++) probes[j % 4] = fmaf(s[j], 0.f, probes[j % 4]);
    if (!__any_sync(~0u, (probes[0] + probes[1]) + (probes[2] + probes[3]) != 0.f)) return;
#pragma unroll
    for (int j = 0; j < TILE / 2; j++) s[j] = fminf(fmaxf(s[j], -3.4e38f), 3.4e38f);
  }

  // A thread's share of a row's best blocks.
  struct List {
    float best[L];   // keys, the greatest first
    float floor;     // scores that are no greater are not among the row's L best
    uint32_t begin, end;  // shared addresses of this thread's places with scores that wait; those of the warp lie side by side

    __device__ explicit List(uint32_t places) : floor(-INFINITY), begin(places), end(places) {
#pragma unroll
      for (int i = 0; i < L; i++) best[i] = -INFINITY;
    }

    __device__ uint32_t waits() const { return end - begin; }

    // Takes 8 scores, s[0], s[1], s[4], s[5] … s[13], of the blocks column, column + 1, column + 8, column + 9 …, as far as these
    // are below a limit. first: nothing is in the list yet.
    __device__ void sort_in(const float* s, int column, int limit, int mask, bool first) {
      float x[8];
#pragma unroll
      for (int j = 0; j < 8; j++) {
        x[j] = offset_of(j) < limit - column ? key_of(s[element_of(j)], column | offset_of(j), mask) : -INFINITY;
      }
      sort_8(x);
      if (first) {
#pragma unroll
        for (int j = 0; j < 8; j++) best[j] = x[j];
      } else {
        merge_8(best, x);
      }
    }

    // Lets a score wait if it lies above the floor, as the key that it has if it is positive.
    __device__ void offer(float score, int above, int mask) {
      asm volatile(
          "{ .reg .pred higher; .reg .u32 key;\n"
          "setp.gt.f32 higher, %1, %2;\n"
          "lop3.b32 key, %3, %4, %5, 0xdc;\n"  // score & ~mask | above
          "@higher st.shared.u32 [%0], key;\n"
          "@higher add.u32 %0, %0, %6; }"
          : "+r"(end) : "f"(score), "f"(floor), "r"(__float_as_int(score)), "r"(above), "r"(mask), "n"(PLACE) : "memory");
    }

    // Takes the last 8 scores that wait, and raises the floor. All lanes of the warp call it.
    __device__ void take_waiting(int mask) {
      float x[8], sum = 0;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        x[j] = -INFINITY;
        if (waits() > j * PLACE) x[j] = __int_as_float(ptx::load_shared_4(end - (j + 1) * PLACE));
        sum += x[j];
      }
      // Keys of Infinity become those of the greatest finite scores; a block takes 14 bits at most.
      if (__any_sync(~0u, isnan(sum))) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
          const int bits = __float_as_int(x[j]);
          if (bits >= 0x7f800000) x[j] = __int_as_float(bits - 0x4000);
        }
      }
      if (!__all_sync(~0u, floor > 0)) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
          if (x[j] < 0 && x[j] > -INFINITY) x[j] = __int_as_float(__float_as_int(x[j]) ^ mask);
        }
      }
      end = max(begin, end - 8 * PLACE);
      sort_8(x);
      merge_8(best, x);
      raise_floor(mask);
    }

    // L keys of the row are no less than the least of its threads' L/4-th.
    __device__ void raise_floor(int mask) {
      float key = best[L / 4 - 1];
      key = fminf(key, __shfl_xor_sync(~0u, key, 1));
      key = fminf(key, __shfl_xor_sync(~0u, key, 2));
      if (key == -INFINITY) return;
      // A later block with the same truncated score is no better.
      const int bits = __float_as_int(key);
      floor = __int_as_float(bits < 0 ? bits & ~mask : bits | mask);
    }
  };

  // Takes the scores out of which a row, the upper or the lower one, does not choose. left: blocks from the thread's first on.
  template <int Row>
  static __device__ void mask(float (&s)[TILE / 2], int left) {
#pragma unroll
    for (int j = 0; j < TILE / 4; j++) {
      float& score = s[element_of(j) + Row];
      score = offset_of(j) < left ? score : -INFINITY;
    }
  }

  // Decides between the last chosen block and the first one left out in float32, when they are close: row by row, all lanes of
  // the warp together. query: row of q; first_centroid: row of the centroids, of the sequence's first block.
  __device__ void reconsider(float (&best)[L], long long query, long long first_centroid) const {
    constexpr int EACH = D / 32;  // channels of a lane
    struct alignas(EACH * sizeof(T)) Query { T x[EACH]; };
    struct alignas(EACH * sizeof(float)) Centroid { float x[EACH]; };
    const int wanted = a.slots - a.causal, kv_heads = a.heads / a.group;  // wanted: less than L
    float last = 0, spare = -INFINITY;
#pragma unroll
    for (int i = 1; i < L; i++) {
      if (i == wanted) last = best[i - 1], spare = best[i];
    }
    const int lane = threadIdx.x % 32, block0 = column_of(last, a.mask), block1 = column_of(spare, a.mask);
    // Lanes 0 and 1 of a quad speak for its rows.
    const bool close = spare > -INFINITY && last - spare <= fmaxf(fabsf(best[0]), fabsf(spare)) * (1.f / 512);
    bool change = false;
    for (unsigned left = __ballot_sync(~0u, close && (lane & 2) == 0); left != 0; left &= left - 1) {
      const int of = __ffs(left) - 1;
      const int chosen = __shfl_sync(~0u, block0, of), other = __shfl_sync(~0u, block1, of);
      const auto centroid = [&](int block) {
        return static_cast<const Centroid*>(a.centroids)[(first_centroid + static_cast<long long>(block) * kv_heads) * 32 + lane];
      };
      const Query q = static_cast<const Query*>(a.q)[__shfl_sync(~0u, query, of) * 32 + lane];
      const Centroid centroid0 = centroid(chosen), centroid1 = centroid(other);
      float ahead = 0;  // of the other block's score
#pragma unroll
      for (int c = 0; c < EACH; c++) ahead = fmaf(to_float(q.x[c]), centroid1.x[c] - centroid0.x[c], ahead);
#pragma unroll
      for (int o = 16; o > 0; o /= 2) ahead += __shfl_xor_sync(~0u, ahead, o);
      const bool changes = ahead > 0 || (ahead == 0 && other < chosen);
      if ((lane & ~2) == of) change = changes;
    }
#pragma unroll
    for (int i = 1; i < L; i++) {
      if (i == wanted && change) best[i - 1] = spare;
    }
  }

  // Writes a row of the result: the chosen blocks, the best first, then the own one. Both lanes of the row have the list.
  __device__ void write(const float (&best)[L], int* row, int own, int limit) const {
    const int second = threadIdx.x >> 1 & 1, chosen = min(a.slots - a.causal, limit);
    auto slot = [&](int i) { return i < chosen ? column_of(best[i], a.mask) : own >= 0 && i == chosen ? own : -1; };
    if (a.slots % 4 == 0) {
#pragma unroll
      for (int i = 0; i < L; i += 4) {
        if (i < a.slots && i / 4 % 2 == second) {
          *reinterpret_cast<int4*>(row + i) = make_int4(slot(i), slot(i + 1), slot(i + 2), slot(i + 3));
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < L; i++) {
        if (i < a.slots && i % 2 == second) row[i] = slot(i);
      }
    }
  }
};

// Registers that the CTA was launched with are shared out between the consumers and the producers. By the shuffle the
// compiler knows that a warp has one number, and keeps addresses in uniform registers.
#define MOBA_ROUTE(NAME, ...)                                                                \
  extern "C" __global__ void __launch_bounds__(Route<__VA_ARGS__>::THREADS, 1)              \
      NAME(const __grid_constant__ RouteArguments arguments) {                              \
    using Kernel = Route<__VA_ARGS__>;                                                      \
    constexpr int CONSUMERS = 128 * Kernel::WARPGROUPS;                                     \
    static_assert(Kernel::SHARED + sizeof(Kernel::Shared) <= 227 * 1024);                   \
    __shared__ Kernel::Shared shared;                                                       \
    const Kernel kernel(arguments, shared);                                                 \
    if (threadIdx.x == 0) kernel.init();                                                    \
    __syncthreads();                                                                        \
    if (threadIdx.x >= CONSUMERS) {                                                         \
      asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");                                  \
      if (threadIdx.x == CONSUMERS) kernel.produce_centroids();                             \
      if (threadIdx.x == CONSUMERS + 32) kernel.produce_queries();                          \
    } else {                                                                                \
      asm volatile("setmaxnreg.inc.sync.aligned.u32 88;");                                  \
      kernel.consume(__shfl_sync(~0u, threadIdx.x / 128, 0));                               \
    }                                                                                       \
  }
#define MOBA_ROUTE_BOTH(NAME, ...)                        \
  MOBA_ROUTE(sm90_route_bf16_##NAME, bf16, __VA_ARGS__) \
  MOBA_ROUTE(sm90_route_f16_##NAME, f16, __VA_ARGS__)

// Lists of 8 or 16: one more than the blocks to choose by score, at least.
MOBA_ROUTE_BOTH(d128_l8, 128, 8)
MOBA_ROUTE_BOTH(d128_l16, 128, 16)
MOBA_ROUTE_BOTH(d64_l8, 64, 8)
MOBA_ROUTE_BOTH(d64_l16, 64, 16)
