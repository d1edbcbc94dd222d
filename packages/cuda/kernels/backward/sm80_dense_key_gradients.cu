// Gradients of keys and values of dense and sliding-window attention by mma.sync: a CTA keeps dk and dv of 128 keys; the
// queries that see some of them, of all the heads that read them, pass by (the scheme of FlashAttention-2, arXiv
// 2307.08691).
#include "backward/block_range.cuh"
#include "backward/key_gradients.cuh"

struct DenseArguments {
  const void* q;  // [T, H, d]
  const void* d_out;
  const void* k;  // [Tk, Hkv, d]
  const void* v;
  const float2* terms;  // [H, T], see row_terms.cu
  const Range* ranges;  // whole sequences, blocks are of as many keys as a CTA has
  void* dk;
  void* dv;
  int tokens, heads, group, range_count;
  int causal;          // 0 or 1
  int window;          // a query at t sees keys t − window + 1 … t; not causal: all keys
  float scale;
};

// What a CTA has to know of its keys, in shared memory: registers are scarce.
struct Work {
  long long first_key;  // element of k and v
  int keys;
  int query_begin;  // token of the first query that sees some of the keys
  int queries;      // from there to the last that does
  int end;          // of the first query: it sees keys before that one
  int step;         // from the end of a query to the next one's
};

// Neighbouring queries of all heads of a group.
struct NeighbouringQueries {
  const DenseArguments& a;
  const Work& work;

  __device__ __forceinline__ int fetch(int row) const { return row; }

  __device__ __forceinline__ QueryRow row(int row) const {
    const int query = row % work.queries;
    const int head = static_cast<int>(blockIdx.y) * a.group + row / work.queries;
    return {work.query_begin + query, head, work.end + query * work.step, 0};
  }
};

__device__ __forceinline__ Work look_up(const DenseArguments& a, int block_keys, int head_dim) {
  const Range range = range_of_block(a.ranges, a.range_count, blockIdx.x);
  const int first_key = (static_cast<int>(blockIdx.x) - range.first_block) * block_keys;
  const int keys = min(block_keys, range.keys - first_key);
  int begin = 0, last = range.queries;
  if (a.causal) {
    begin = min(range.queries, max(0, first_key - range.first_position));
    const long long end = static_cast<long long>(first_key) + keys + a.window - 1 - range.first_position;
    last = static_cast<int>(max(static_cast<long long>(begin), min(end, static_cast<long long>(range.queries))));
  }
  const long long key = static_cast<long long>(range.key_begin) + first_key;
  const int end = a.causal ? range.first_position + begin + 1 : range.keys;
  return {(key * gridDim.y + blockIdx.y) * head_dim, keys, range.query_begin + begin, last - begin, end - first_key,
          a.causal};
}

// Grid: (blocks of keys of all sequences, Hkv).
template <typename T, int D, int Warps, int R>
__device__ __forceinline__ void dense_key_gradients(const DenseArguments& a) {
  using Gradients = KeyGradients<T, D, Warps, R>;
  __shared__ typename Gradients::Notes notes;
  __shared__ Work work;
  const Queries queries = {a.q, a.d_out, a.terms, a.tokens, a.heads, a.scale, a.window};
  Gradients gradients(queries, notes);
  if (threadIdx.x == 0) work = look_up(a, Gradients::KEYS, D);
  __syncthreads();

  const long long stride = gridDim.y * static_cast<long long>(D);
  const T *k = static_cast<const T*>(a.k) + work.first_key, *v = static_cast<const T*>(a.v) + work.first_key;
  NeighbouringQueries source = {a, work};
  gradients.run({k, v, stride, work.keys}, source, a.group * work.queries, true, nullptr);
  Gradients::store(gradients.dk, a.scale, static_cast<T*>(a.dk) + work.first_key, stride, work.keys);
  Gradients::store(gradients.dv, 1.0f, static_cast<T*>(a.dv) + work.first_key, stride, work.keys);
}

// Tiles as in sm80_attend_backward.cu.
#define DENSE_KEY_GRADIENTS(NAME, T, D, R)                                                                           \
  extern "C" __global__ void __launch_bounds__(8 * WARP, 1) NAME(const __grid_constant__ DenseArguments arguments) { \
    dense_key_gradients<T, D, 8, R>(arguments);                                                                      \
  }
#define DENSE_KEY_GRADIENTS_DIMS(NAME, T)    \
  DENSE_KEY_GRADIENTS(NAME##_d32, T, 32, 64) \
  DENSE_KEY_GRADIENTS(NAME##_d64, T, 64, 64) \
  DENSE_KEY_GRADIENTS(NAME##_d96, T, 96, 32) \
  DENSE_KEY_GRADIENTS(NAME##_d128, T, 128, 32)

DENSE_KEY_GRADIENTS_DIMS(sm80_dense_key_gradients_bf16, bf16)
DENSE_KEY_GRADIENTS_DIMS(sm80_dense_key_gradients_f16, f16)
