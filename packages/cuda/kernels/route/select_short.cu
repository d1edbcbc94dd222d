// The up to 64 best blocks of each of a few queries, in one pass over the centroids: a CTA computes the scores of a span
// of blocks and lists the best of them; the last CTA of the same queries then finds the best of all lists.
//
// A warp finds them one by one, the best first: each takes two reductions of the warp, whatever the scores are.
#include "common/last_cta.cuh"
#include "common/rank.cuh"
#include "route/span_scores.cuh"

constexpr int WARPS = THREADS / WARP;
constexpr int LISTED = 16;  // candidates from lists that a lane takes in at once

// A block and the rank of its score.
struct alignas(8) Candidate {
  uint32_t rank;
  int block;
};

// Candidates in the registers of a warp. Places 0 and 1 are for the best so far: entry e, from high to low, is in place
// e / 32 of lane e % 32. `New` others are for candidates that a lane takes in at once.
template <int New>
struct BestBlocks {
  static constexpr int PLACES = 2 + New;
  uint32_t rank[PLACES];
  int block[PLACES];

  __device__ __forceinline__ BestBlocks() {
#pragma unroll
    for (int i = 0; i < PLACES; i++) set(i, Candidate{NO_RANK, -1});
  }

  // Takes in candidate(begin) … candidate(end − 1), those of equal rank in order of their blocks.
  template <typename Source>
  __device__ __forceinline__ void take(Source candidate, int begin, int end, int wanted) {
#pragma unroll 1
    for (; begin < end; begin += New * WARP) {
#pragma unroll
      for (int i = 0; i < New; i++) {
        const int entry = begin + i * WARP + lane_id();
        set(2 + i, entry < end ? candidate(entry) : Candidate{NO_RANK, -1});
      }
      keep_best(wanted);
    }
  }

  // Gives entries 0 … wanted − 1 away.
  template <typename Target>
  __device__ __forceinline__ void give(Target write, int wanted) const {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int entry = i * WARP + lane_id();
      if (entry < wanted) write(entry, Candidate{rank[i], block[i]});
    }
  }

 private:
  __device__ __forceinline__ void set(int i, Candidate candidate) {
    rank[i] = candidate.rank;
    block[i] = candidate.block;
  }

  // Leaves the `wanted` best. Of equal ranks the lower block is better; candidates of a lane are in order of their
  // blocks.
  __device__ __forceinline__ void keep_best(int wanted) {
    uint32_t best = 0;
    int best_block = 0;
    const auto find_best = [&] {
      best = NO_RANK;
      best_block = -1;
#pragma unroll
      for (int i = 0; i < PLACES; i++) {
        if (rank[i] > best) {
          best = rank[i];
          best_block = block[i];
        }
      }
    };
    find_best();
    Candidate list[2] = {{NO_RANK, -1}, {NO_RANK, -1}};
#pragma unroll 1
    for (int entry = 0; entry < wanted; entry++) {
      const uint32_t highest = __reduce_max_sync(ALL_LANES, best);
      if (highest == NO_RANK) break;
      const int chosen = __reduce_min_sync(ALL_LANES, best == highest ? best_block : 0x7fffffff);
      if (lane_id() == entry % WARP) {
#pragma unroll
        for (int i = 0; i < 2; i++) list[i] = i == entry / WARP ? Candidate{highest, chosen} : list[i];
      }
      if (best == highest && best_block == chosen) {
#pragma unroll
        for (int i = 0; i < PLACES; i++) rank[i] = block[i] == chosen ? NO_RANK : rank[i];
        find_best();
      }
      __syncwarp();
    }
#pragma unroll
    for (int i = 0; i < PLACES; i++) set(i, i < 2 ? list[i % 2] : Candidate{NO_RANK, -1});
  }
};

// lists: [rows from token first_token on][spans][slots − causal], temporary. arrived: zero, one for each key head of a
// range and group of Q query rows. indices: [T, H, slots], slots − causal ≤ 64.
// Dynamic shared memory: that of span_scores, and at least 8 · warps · slots. Grid and the other arguments:
// span_scores.cuh.
template <typename T, int Q>
__device__ __forceinline__ void select_short(const T* q, const float* centroids, Pages pages, const Range* ranges,
                                             Candidate* lists, unsigned* arrived, int* indices, int heads,
                                             int kv_heads, int head_dim, int block_size, int causal, int spans,
                                             int span_blocks, int first_token, int slots) {
  static_assert(Q <= WARPS, "a warp lists the best of a row");
  __shared__ float scores[Q][SPAN];
  __shared__ SpanTask task;
  if (threadIdx.x == 0) task = SpanTask::of<Q>(ranges, heads, kv_heads, block_size, causal, spans, span_blocks);
  __syncthreads();
  if (task.count <= 0) return;
  const int used_spans = max(1, ceil_div(task.choices(task.count - 1), span_blocks));
  if (task.span >= used_spans) return;
  const int wanted = slots - causal;
  const auto lists_of = [&](int i) {
    return lists + (task.row(i) - static_cast<long long>(first_token) * heads) * spans * wanted;
  };

  if (task.begin < task.end) span_scores(scores, task, q, centroids, pages, head_dim);
  if (warp_id() < task.count) {
    const int i = warp_id(), choices = task.choices(i);
    const auto scored = [&](int entry) {
      const int block = task.begin + entry;
      return block < choices ? Candidate{rank_of(scores[i][entry]), block} : Candidate{NO_RANK, -1};
    };
    Candidate* list = lists_of(i) + task.span * wanted;
    const auto keep = [&](auto best) {
      best.take(scored, 0, task.end - task.begin, wanted);
      best.give([&](int entry, Candidate candidate) { list[entry] = candidate; }, wanted);
    };
    if (span_blocks <= AT_ONCE) keep(BestBlocks<AT_ONCE / WARP>());
    else keep(BestBlocks<SPAN / WARP>());
  }
  const int range = blockIdx.x / kv_heads / spans;
  if (!last_to_arrive(arrived + (range * kv_heads + task.kv_head) * gridDim.y + blockIdx.y, used_spans)) return;

  // Each row has a warp, or several, each for a part of the lists, where they are long.
  const int i = warp_id() % Q, part = warp_id() / Q;
  const int entries = used_spans * wanted;
  const int parts = min(WARPS / Q, max(1, ceil_div(entries, LISTED * WARP)));
  const int part_entries = ceil_div(entries, parts);
  const bool active = i < task.count && part < parts;
  BestBlocks<LISTED> best;
  if (active) {
    const Candidate* listed = lists_of(i);
    const int begin = part * part_entries;
    best.take([&](int entry) { return listed[entry]; }, begin, min(begin + part_entries, entries), wanted);
  }
  if (parts > 1) {
    Candidate* of_parts = reinterpret_cast<Candidate*>(sharedMemory) + i * parts * wanted;
    if (active) {
      best.give([&](int entry, Candidate candidate) { of_parts[part * wanted + entry] = candidate; }, wanted);
    }
    __syncthreads();
    if (active && part == 0) {
      best.take([&](int entry) { return of_parts[entry]; }, wanted, parts * wanted, wanted);
    }
  }
  if (!active || part != 0) return;
  int* chosen = indices + task.row(i) * slots;
  if (causal && lane_id() == 0) chosen[0] = task.own(i);
  best.give([&](int entry, Candidate candidate) { chosen[causal + entry] = candidate.block; }, wanted);
}

#define SELECT_SHORT(NAME, T, Q)                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, CTAS<Q>)                                                     \
      NAME(const T* q, const float* centroids, const int* page_table, int blocks_per_page, const Range* ranges,      \
           Candidate* lists, unsigned* arrived, int* indices, int heads, int kv_heads, int head_dim, int block_size, \
           int causal, int spans, int span_blocks, int first_token, int slots) {                                     \
    select_short<T, Q>(q, centroids, Pages{page_table, blocks_per_page}, ranges, lists, arrived, indices, heads,     \
                       kv_heads, head_dim, block_size, causal, spans, span_blocks, first_token, slots);              \
  }

SELECT_SHORT(select_short_f32_1, f32, 1)
SELECT_SHORT(select_short_f32_4, f32, 4)
SELECT_SHORT(select_short_f32_8, f32, 8)
SELECT_SHORT(select_short_f16_1, f16, 1)
SELECT_SHORT(select_short_f16_4, f16, 4)
SELECT_SHORT(select_short_f16_8, f16, 8)
SELECT_SHORT(select_short_bf16_1, bf16, 1)
SELECT_SHORT(select_short_bf16_4, bf16, 4)
SELECT_SHORT(select_short_bf16_8, bf16, 8)
