// Routed attention by mma.sync: the queries that chose a key block attend to it, each (query, slot) gives a normalized partial
// output and its log-sum-exp.
//
// Persistent. A CTA of 4 warps takes every so-many-th work item: a key block and some of the queries that chose it. The
// block passes by in chunks. There is room for one chunk of keys and one of values: values load while scores are computed;
// the next keys, and the next item's queries, while values are summed.
// allow-spills sm80_attend_bf16_d128: a few words between tiles, none between matrix products
// allow-spills sm80_attend_f16_d128: a few words between tiles, none between matrix products
#include "common/range.cuh"
#include "common/shared.cuh"
#include "common/warp_attention.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;

struct AttendArguments {
  const void* q;  // [T, H, d]
  const void* k;  // [Tk, Hkv, d]
  const void* v;
  const Range* ranges;
  const int* entries;      // see invert.ts
  const int4* items;       // {block, list begin, rows, 0}, in a region of most_items a segment
  const int* item_starts;  // [segments + 1]: items of the segments before
  void* partial;           // of d elements in accumulator order, from the first segment's region on
  float* partial_lse;      // base 2
  long long key_stride;    // elements from one key token to the next: Hkv · d
  int heads, group, slots;  // H, H/Hkv
  int first_head, first_token, tokens;  // of the lists
  int range_count, most_items;
  int first_segment, end_segment;  // to work on
  int block_size, causal;
  float scale;  // of scores, times log2(e); positive
  int negate;   // scores are multiplied by −scale
};

// What a CTA has to know of its item, in shared memory: registers are scarce.
template <int Rows>
struct Item {
  int rows;               // none: there is no such item
  int number;             // of all items
  int segment;
  int keys;               // of the block
  int first_position;     // of the range's first query, counted from the block's first key
  long long first_key;    // element of k and v
  long long first_query;  // element of q: the range's first query
  long long first_slot;   // of the segment
  int entries[Rows];
};

template <typename T, int D, int M, int K>
struct Attend {
  using Rows = Tile<D>;
  using Attention = WarpAttention<T, D, M, K>;
  static constexpr int WARP_ROWS = Attention::ROWS;
  using Work = Item<WARPS * WARP_ROWS>;

  const AttendArguments& a;

  // The first entry of a segment's region.
  __device__ __forceinline__ long long region(int segment) const {
    const int token = a.ranges[segment % a.range_count].query_begin - a.first_token;
    return (static_cast<long long>(segment / a.range_count) * a.tokens + token) * a.slots;
  }

  // Looks up item `number` of all; it is not before `segment`. All warps do; each writes the entries of its own rows.
  __device__ __forceinline__ void look_up(Work& work, int number, int segment) const {
    if (number >= a.item_starts[a.end_segment]) {
      if (threadIdx.x == 0) work.rows = 0;
      return;
    }
    for (int passed = WARP; passed == WARP; segment += passed) {  // segments may be many and short: look at 32 at once
      const int next = segment + 1 + lane_id();
      passed = __popc(__ballot_sync(ALL_LANES, next < a.end_segment && number >= a.item_starts[next]));
    }
    const int4 item = a.items[static_cast<long long>(segment) * a.most_items + number - a.item_starts[segment]];
    const long long slots = region(segment);
    if (lane_id() < WARP_ROWS) {
      const int row = warp_id() * WARP_ROWS + lane_id();
      work.entries[row] = a.entries[slots + item.y + min(row, item.z - 1)];  // beyond the end: the last one again
    }
    if (threadIdx.x != 0) return;
    const Range range = a.ranges[segment % a.range_count];
    const int head = a.first_head + segment / a.range_count, first_key = item.x * a.block_size;
    work.rows = item.z;
    work.number = number;
    work.segment = segment;
    work.keys = min(a.block_size, range.keys - first_key);
    work.first_position = range.first_position - first_key;
    work.first_key = (range.key_begin + first_key) * a.key_stride + head / a.group * D;
    work.first_query = (static_cast<long long>(range.query_begin) * a.heads + head) * D;
    work.first_slot = slots - region(a.first_segment);
  }

  // A warp copies its own queries.
  __device__ __forceinline__ void gather(uint32_t queries, const Work& work) const {
    const int token = work.entries[warp_id() * WARP_ROWS + lane_id() % WARP_ROWS] / a.slots;
    const long long from = work.first_query + static_cast<long long>(token) * a.heads * D;
    Rows::template gather_rows<WARP_ROWS>(queries, static_cast<const T*>(a.q), from);
  }

  // Copies keys (or values) of the block from key `first` on.
  __device__ __forceinline__ void load(uint32_t tile, const void* source, const Work& work, int first) const {
    const T* from = static_cast<const T*>(source) + work.first_key + first * a.key_stride;
    Rows::template copy_rows<K, THREADS>(tile, from, a.key_stride, work.keys - first);
    ptx::copy_commit();
  }

  __device__ __forceinline__ void run() const {
    __shared__ Work works[2];  // this item and the next one
    const uint32_t shared = static_cast<uint32_t>(__cvta_generic_to_shared(sharedMemory));
    const uint32_t keys = shared, values = keys + K * Rows::ROW_BYTES;
    const uint32_t queries = values + K * Rows::ROW_BYTES + warp_id() * WARP_ROWS * Rows::ROW_BYTES;
    Attention rows(a.scale, a.negate, NO_WINDOW);

    look_up(works[0], a.item_starts[a.first_segment] + blockIdx.x, a.first_segment);
    __syncthreads();
    if (works[0].rows > 0) {
      gather(queries, works[0]);
      load(keys, a.k, works[0], 0);
    }
    for (int turn = 0; works[turn].rows > 0; turn ^= 1) {
      const Work& work = works[turn];
      Work& next = works[turn ^ 1];
      const bool active = warp_id() * WARP_ROWS < work.rows;
      const int position = work.first_position + work.entries[warp_id() * WARP_ROWS + lane_id() % WARP_ROWS] / a.slots;
      rows.reset(a.causal ? min(work.keys, position + 1) : work.keys);
      for (int first = 0; first < work.keys; first += K) {
        ptx::copy_wait<0>();
        __syncthreads();  // queries and keys are there; everyone is done with the last values
        load(values, a.v, work, first);
        if (first == 0) look_up(next, work.number + gridDim.x, work.segment);
        const bool seen = active && rows.sees(first);
        typename Attention::Scores s;
        if (seen) rows.scores(s, queries, keys);
        ptx::copy_wait<0>();
        __syncthreads();  // the values are there; everyone is done with the keys
        if (first + K < work.keys) {
          load(keys, a.k, work, first + K);
        } else if (next.rows > 0) {
          gather(queries, next);
          load(keys, a.k, next, 0);
        }
        if (seen) rows.add_chunk(s, values, first);
      }
      if (active) store(rows, work);
    }
  }

  // Writes the rows as they lie in the registers.
  __device__ __forceinline__ void store(Attention& rows, const Work& work) const {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float lse = rows.finish(m, i);
        const int row = warp_id() * WARP_ROWS + 16 * m + lane_id() / 4 + 8 * i;
        if (row >= work.rows) continue;
        const long long slot = work.first_slot + work.entries[row];
        uint4* target = static_cast<uint4*>(a.partial) + slot * Rows::PIECES + lane_id() % 4;
#pragma unroll
        for (int j = 0; j < D / 8; j += 4) {
          uint32_t w[4];
#pragma unroll
          for (int u = 0; u < 4; u++) w[u] = pack<T>(rows.out[m][j + u][2 * i], rows.out[m][j + u][2 * i + 1]);
          target[j] = make_uint4(w[0], w[1], w[2], w[3]);
        }
        if (lane_id() % 4 == 0) a.partial_lse[slot] = lse;
      }
  }
};

// Items of 128 rows, chunks of 64 keys; of 256 channels half as many, for the sake of registers.
#define ATTEND(NAME, T, D, M, K)                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) NAME(const __grid_constant__ AttendArguments arguments) { \
    Attend<T, D, M, K>{arguments}.run();                                                                             \
  }
#define ATTEND_DIMS(NAME, T)         \
  ATTEND(NAME##_d32, T, 32, 2, 64)   \
  ATTEND(NAME##_d64, T, 64, 2, 64)   \
  ATTEND(NAME##_d96, T, 96, 2, 64)   \
  ATTEND(NAME##_d128, T, 128, 2, 64) \
  ATTEND(NAME##_d256, T, 256, 1, 32)

ATTEND_DIMS(sm80_attend_bf16, bf16)
ATTEND_DIMS(sm80_attend_f16, f16)
