// Gradients of routed attention by mma.sync: the queries that chose a key block pass by it; it keeps dk and dv, and each
// (query, slot) gets its part of dq. See slot_backward.ts.
//
// Persistent: CTAs draw work items, a chunk of a key block and some of the queries that chose it, from a global counter.
// allow-spills sm80_attend_backward_bf16_d128: on sm_120 four words, between tiles
// allow-spills sm80_attend_backward_f16_d128: on sm_120 four words, between tiles
#include "backward/key_gradients.cuh"
#include "backward/wave.cuh"

struct BackwardArguments : WaveArguments {
  const void* q;  // [T, H, d]
  const void* d_out;
  const void* k;  // [Tk, Hkv, d]
  const void* v;
};

// What a CTA has to know of its item, in shared memory: registers are scarce.
struct Item {
  long long first_key;  // element of k and v
  int rows;             // negative: there is no item
  int segment;
  int piece;
  int first_row;        // of the joined lists
  int first_list;       // of the key head's first query head: number head · columns + column
  int first_head;       // of the key head, counted from the first of the lists
  int query_begin;      // token
  int chunk;            // of the block
  int keys;             // of the chunk
  int behind;           // a query of local token i sees keys below i − behind
};

// The queries of an item: rows of the joined lists of a key head's query heads.
struct ListedQueries {
  const BackwardArguments& a;
  const Item& item;
  int member = 0;  // of the group
  int before = 0;  // rows of the lists before

  __device__ __forceinline__ long long list() const {
    return static_cast<long long>(member) * a.columns + item.first_list;
  }

  // The first query of the range, among those of all lists.
  __device__ __forceinline__ long long first_query() const {
    return static_cast<long long>(item.first_head + member) * a.tokens + item.query_begin - a.first_token;
  }

  __device__ __forceinline__ int fetch(int row) {
    row += item.first_row;
    for (int count; row >= before + (count = a.counts[list()]); member++) before += count;
    return a.entries[first_query() * a.slots + a.starts[list()] + row - before];
  }

  __device__ __forceinline__ QueryRow row(int entry) const {
    const int query = entry / a.slots;
    const int slot = static_cast<int>((first_query() * a.slots + entry) * a.chunks + item.chunk);
    return {item.query_begin + query, a.first_kv_head * a.group + item.first_head + member,
            max(0, a.causal ? min(item.keys, query - item.behind) : item.keys), slot};
  }
};

// Draws an item, which is not before `segment`. A warp does.
__device__ __forceinline__ void draw(const BackwardArguments& a, Item& found, int segment, int head_dim) {
  const int number = __shfl_sync(ALL_LANES, lane_id() == 0 ? atomicAdd(a.ticket, 1) : 0, 0);
  if (number >= a.item_starts[a.segments]) {
    found.rows = -1;
    return;
  }
  for (int passed = WARP; passed == WARP; segment += passed) {  // segments may be many and short: look at 32 at once
    const int next = segment + 1 + lane_id();
    passed = __popc(__ballot_sync(ALL_LANES, next < a.segments && number >= a.item_starts[next]));
  }
  if (lane_id() != 0) return;
  const int4 item = a.items[static_cast<long long>(segment) * a.most_items + number - a.item_starts[segment]];
  const Range range = a.ranges[segment % a.range_count];
  const int head = segment / a.range_count, kv_heads = a.heads / a.group;
  const int block = item.x / a.chunks, chunk = item.x % a.chunks;
  const int first_key = block * a.block_size + chunk * a.chunk_keys;
  found.first_key =
      ((static_cast<long long>(range.key_begin) + first_key) * kv_heads + a.first_kv_head + head) * head_dim;
  found.rows = item.z;
  found.segment = segment;
  found.piece = item.w;
  found.first_row = item.y;
  found.first_list = head * a.group * a.columns + range.first_block + block;
  found.first_head = head * a.group;
  found.query_begin = range.query_begin;
  found.chunk = chunk;
  found.keys = min(min(a.chunk_keys, a.block_size - chunk * a.chunk_keys), range.keys - first_key);
  found.behind = first_key - range.first_position - 1;
}

template <typename T, int D, int Warps, int R>
__device__ __forceinline__ void attend_backward(const BackwardArguments& a) {
  using Gradients = KeyGradients<T, D, Warps, R>;
  __shared__ typename Gradients::Notes notes;
  __shared__ Item items[2];  // this one and the next one
  const Queries queries = {a.q, a.d_out, a.terms, a.all_tokens, a.heads, a.scale, NO_WINDOW};
  Gradients gradients(queries, notes);
  const long long stride = a.heads / a.group * static_cast<long long>(D);

  if (warp_id() == 0) draw(a, items[0], 0, D);
  for (int turn = 0;; turn ^= 1) {
    __syncthreads();  // the item is there; everyone is done with the last one
    const Item& item = items[turn];
    if (item.rows < 0) break;
    if (warp_id() == 0) draw(a, items[turn ^ 1], item.segment, D);
    const T *k = static_cast<const T*>(a.k) + item.first_key, *v = static_cast<const T*>(a.v) + item.first_key;
    ListedQueries source = {a, item};
    gradients.run({k, v, stride, item.keys}, source, item.rows, a.dk != nullptr, a.partial);
    if (a.dk == nullptr) continue;
    if (item.piece < 0) {
      Gradients::store(gradients.dk, a.scale, static_cast<T*>(a.dk) + item.first_key, stride, item.keys);
      Gradients::store(gradients.dv, 1.0f, static_cast<T*>(a.dv) + item.first_key, stride, item.keys);
    } else {
      float* piece = a.pieces + 2ll * item.piece * a.chunk_keys * D;
      Gradients::store(gradients.dk, a.scale, piece, item.keys);
      Gradients::store(gradients.dv, 1.0f, piece + a.chunk_keys * D, item.keys);
    }
  }
}

// Chunks of at most 64 or 128 keys; tiles of 64 rows where registers and shared memory have room for them, else 32.
#define ATTEND_BACKWARD(NAME, T, D, WARPS, R)                          \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP, 8 / WARPS) \
      NAME(const __grid_constant__ BackwardArguments arguments) {      \
    attend_backward<T, D, WARPS, R>(arguments);                        \
  }
#define ATTEND_BACKWARD_DIMS(NAME, T)             \
  ATTEND_BACKWARD(NAME##_d32_b64, T, 32, 4, 64)   \
  ATTEND_BACKWARD(NAME##_d64_b64, T, 64, 4, 64)   \
  ATTEND_BACKWARD(NAME##_d96_b64, T, 96, 4, 32)   \
  ATTEND_BACKWARD(NAME##_d128_b64, T, 128, 4, 32) \
  ATTEND_BACKWARD(NAME##_d32_b128, T, 32, 8, 64)  \
  ATTEND_BACKWARD(NAME##_d64_b128, T, 64, 8, 64)  \
  ATTEND_BACKWARD(NAME##_d96_b128, T, 96, 8, 32)  \
  ATTEND_BACKWARD(NAME##_d128_b128, T, 128, 8, 32)

ATTEND_BACKWARD_DIMS(sm80_attend_backward_bf16, bf16)
ATTEND_BACKWARD_DIMS(sm80_attend_backward_f16, f16)
