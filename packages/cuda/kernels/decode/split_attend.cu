// Attention of a few queries over many keys (decoding), in pieces: a CTA takes one piece of the keys of one query of
// one head, so that even one query occupies the device. A piece is a part of a routed block, some whole blocks, or a part of
// all keys that the query sees. The last CTA of a query and head puts the pieces together.
#include "common/last_cta.cuh"
#include "common/range.cuh"
#include "common/row_attention.cuh"
#include "common/shared.cuh"
#include "decode/merge_pieces.cuh"

constexpr int WARPS = 4;

// Keys of a sequence from `begin` to before `end`, none where that is not greater; they lie together from row `row` on.
struct Span {
  int begin, end;
  long long row;

  // That of another lane.
  __device__ __forceinline__ Span of_lane(int lane) const {
    return {__shfl_sync(ALL_LANES, begin, lane), __shfl_sync(ALL_LANES, end, lane), __shfl_sync(ALL_LANES, row, lane)};
  }
};

// Attention of a query over the keys of the first `count` lanes' spans, of one key head, normalized, to `out`; gives its
// log-sum-exp, base 2. keys, values: rows `step` elements apart. query: [d] in shared memory; warp_out is shared memory.
template <typename T, int V, int Columns>
__device__ __forceinline__ float attend_spans(float (&warp_out)[WARPS][Columns], const T* keys, const T* values,
                                              const Span& mine, int count, long long step, const float* query,
                                              float factor, int head_dim, int slab, float* out) {
  using Attention = RowAttention<T, V, Columns>;
  __shared__ float warp_max_score[WARPS], warp_total[WARPS];
  Attention attention;
  for (int i = 0; i < count; i++) {
    const Span span = mine.of_lane(i);
    // Each warp takes a part of the span.
    const int length = max(0, span.end - span.begin), part = ceil_div(length, WARPS * KEY_GROUPS) * KEY_GROUPS;
    const int begin = min(length, warp_id() * part);
    const long long at = (span.row + begin) * step;
    attention.add(keys + at, values + at, step, min(length - begin, part), query, factor, head_dim, slab);
  }
  attention.merge_groups();

  if (lane_id() == 0) {
    warp_max_score[warp_id()] = attention.max;
    warp_total[warp_id()] = attention.sum;
  }
  if (lane_id() < KEY_LANES) {
#pragma unroll
    for (int i = 0; i < Attention::PACKETS; i++) {
#pragma unroll
      for (int c = 0; c < V; c++) warp_out[warp_id()][attention.column(0, i) + c] = attention.out[i][c];
    }
  }
  __syncthreads();

  float highest = -INFINITY, sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) highest = fmaxf(highest, warp_max_score[warp]);
  float weight[WARPS];
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) {
    weight[warp] = exp2f(warp_max_score[warp] - shift_of(highest));
    sum += weight[warp] * warp_total[warp];
  }
  for (int c = threadIdx.x; c < min(Columns, head_dim - slab * Columns); c += WARPS * WARP) {
    float x = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) x += weight[warp] * warp_out[warp][c];
    out[slab * Columns + c] = x * inverse_sum(sum);
  }
  return log_sum(highest, sum);
}

// q: [T, H, d]. k, v: rows [Hkv, d], laid out by `pages`. indices: [T, H, slots], or null: pieces of the keys from t
// − window + 1 on. out: [T, H, d]. lse: [T, H], natural.
// Of routed blocks a piece is piece_keys keys of one, or piece_slots > 1 whole ones, at most 32.
// piece_out: float32 [T, H, pieces, d], normalized; piece_lse: [T, H, pieces], base 2, −Infinity of an empty piece; both
// temporary. arrived: [T, H], zero.
// Dynamic shared memory: the query in float32. Grid: (ranges · queries of the longest range · pieces · G, Hkv,
// slabs): neighbours are the G heads that read the same keys.
template <typename T, int V, int Columns>
__device__ __forceinline__ void split_attend(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                                             Pages pages, const int* __restrict__ indices, const Range* ranges,
                                             float* piece_out, float* piece_lse, unsigned* arrived, T* out, float* lse,
                                             int heads, int kv_heads, int head_dim, int block_size, int slots,
                                             int causal, int window, float scale, int longest, int pieces,
                                             int piece_slots, int piece_keys) {
  __shared__ float warp_out[WARPS][Columns];
  const int group_heads = heads / kv_heads;
  const int head = blockIdx.y * group_heads + blockIdx.x % group_heads;
  const int piece = blockIdx.x / group_heads % pieces;
  const int item = blockIdx.x / group_heads / pieces;
  const Range range = ranges[item / longest];
  const int query = item % longest, slab = blockIdx.z;
  if (query >= range.queries) return;
  const int position = range.first_position + query;
  const long long row = static_cast<long long>(range.query_begin + query) * heads + head;
  float* query_row = reinterpret_cast<float*>(sharedMemory);
  for (int c = threadIdx.x; c < head_dim; c += WARPS * WARP) query_row[c] = to_float(q[row * head_dim + c]);

  const int end = causal ? min(range.keys, position + 1) : range.keys;
  Span span{};  // of a lane
  int spans = 1;
  if (indices == nullptr) {
    span.begin = max(0, position - window + 1) + piece * piece_keys;
    span.end = min(end, span.begin + piece_keys);
  } else {
    const int parts = piece_slots > 1 ? 1 : pieces / slots;
    const int first_slot = piece / parts * piece_slots;
    spans = min(piece_slots, slots - first_slot);
    const int block = lane_id() < spans ? indices[row * slots + first_slot + lane_id()] : -1;
    if (block >= 0) {
      span.begin = block * block_size + piece % parts * piece_keys;
      span.end = min(end, min((block + 1) * block_size, span.begin + piece_keys));
    }
  }
  const bool any = __any_sync(ALL_LANES, span.begin < span.end);
  if (span.begin < span.end) span.row = pages.row(range.key_begin, span.begin);  // no page ends within a block
  __syncthreads();

  float piece_sum = -INFINITY;
  piece_out += row * pieces * head_dim;
  piece_lse += row * pieces;
  if (any) {
    const int column = blockIdx.y * head_dim;
    piece_sum = attend_spans<T, V>(warp_out, k + column, v + column, span, spans,
                                   static_cast<long long>(kv_heads) * head_dim, query_row, scale * LOG2_E, head_dim,
                                   slab, piece_out + static_cast<long long>(piece) * head_dim);
  }
  if (threadIdx.x == 0 && slab == 0) piece_lse[piece] = piece_sum;
  if (!last_to_arrive(arrived + row, pieces * gridDim.z)) return;
  merge_pieces(warp_out, piece_out, piece_lse, out + row * head_dim, lse + row, head_dim, pieces);
}

#define SPLIT_ATTEND(NAME, T, V, COLUMNS, CTAS)                                                                      \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP, CTAS)                                                    \
      NAME(const T* q, const T* k, const T* v, const int* page_table, int page_size, const int* indices,             \
           const Range* ranges, float* piece_out, float* piece_lse, unsigned* arrived, T* out, float* lse,           \
           int heads, int kv_heads, int head_dim, int block_size, int slots, int causal, int window, float scale,    \
           int longest, int pieces, int piece_slots, int piece_keys) {                                               \
    split_attend<T, V, COLUMNS>(q, k, v, Pages{page_table, page_size}, indices, ranges, piece_out, piece_lse,        \
                                arrived, out, lse, heads, kv_heads, head_dim, block_size, slots, causal, window,     \
                                scale, longest, pieces, piece_slots, piece_keys);                                    \
  }

// Rows of a multiple of 16 bytes, those of at most 64 columns, and any rows.
SPLIT_ATTEND(split_attend_f32, f32, 4, SLAB, 3)
SPLIT_ATTEND(split_attend_f16, f16, 8, SLAB, 3)
SPLIT_ATTEND(split_attend_bf16, bf16, 8, SLAB, 3)
SPLIT_ATTEND(split_attend_f32_narrow, f32, 4, 64, 3)
SPLIT_ATTEND(split_attend_f16_narrow, f16, 8, 64, 5)
SPLIT_ATTEND(split_attend_bf16_narrow, bf16, 8, 64, 5)
SPLIT_ATTEND(split_attend_f32_scalar, f32, 1, SLAB, 3)
SPLIT_ATTEND(split_attend_f16_scalar, f16, 1, SLAB, 3)
SPLIT_ATTEND(split_attend_bf16_scalar, bf16, 1, SLAB, 3)
