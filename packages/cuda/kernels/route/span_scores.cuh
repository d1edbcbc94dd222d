// Scores of a few queries against a span of blocks, by a CTA: for routing when one query a sequence has to occupy the
// whole device (decoding), or when its list of blocks is too long for registers (k > 64).
//
// The queries are up to Q of those that share a key head, of all G query heads: so the centroids, which are most of the
// traffic, are read once. 8 lanes lie along a centroid, and each thread has several centroids on their way at once.
#pragma once
#include "common/elements.cuh"
#include "common/range.cuh"
#include "common/shared.cuh"
#include "common/warp.cuh"

constexpr int THREADS = 256;
constexpr int SPAN = 512;  // at most
constexpr int LANES = 8;
constexpr int GROUPS = THREADS / LANES;
constexpr int BLOCKS = 4;  // of a thread at once
constexpr int AT_ONCE = BLOCKS * GROUPS;

// CTAs that share a multiprocessor.
template <int Q>
constexpr int CTAS = Q == 8 ? 3 : 4;

// What a CTA takes; it lies in shared memory, since registers are scarce. Its queries are rows of the range's
// [token][head] for one key head. A span is `span_blocks` long, at most SPAN.
// Grid: (ranges · spans · Hkv, groups of Q query rows of the longest range): neighbours read neighbouring centroids.
struct SpanTask {
  Range range;
  int heads, group_heads, kv_head, block_size, causal;
  int first, count;      // rows
  int span, begin, end;  // blocks that some of the rows may choose

  template <int Q>
  static __device__ __forceinline__ SpanTask of(const Range* ranges, int heads, int kv_heads, int block_size,
                                                int causal, int spans, int span_blocks) {
    SpanTask task;
    task.range = ranges[blockIdx.x / kv_heads / spans];
    task.heads = heads;
    task.group_heads = heads / kv_heads;
    task.kv_head = blockIdx.x % kv_heads;
    task.block_size = block_size;
    task.causal = causal;
    task.first = blockIdx.y * Q;
    task.count = min(Q, task.range.queries * task.group_heads - task.first);
    task.span = blockIdx.x / kv_heads % spans;
    task.begin = task.span * span_blocks;
    task.end = min(task.begin + span_blocks, task.choices(task.count - 1));
    return task;
  }

  __device__ __forceinline__ int token(int i) const { return (first + i) / group_heads; }
  // Row i as one of T·H.
  __device__ __forceinline__ long long row(int i) const {
    return static_cast<long long>(range.query_begin + token(i)) * heads + kv_head * group_heads +
           (first + i) % group_heads;
  }
  __device__ __forceinline__ int own(int i) const { return own_block(range.first_position + token(i), block_size); }
  // Row i may choose the blocks before this one.
  __device__ __forceinline__ int choices(int i) const {
    return causal ? max(0, own(i)) : ceil_div(range.keys, block_size);
  }
};

// Adds the products of this lane's columns. centroids: this thread's are every GROUPS-th.
template <int V, int Q>
__device__ __forceinline__ void add_products(float (&sums)[Q][BLOCKS], const float* const* centroids,
                                             const float* queries, int head_dim) {
  constexpr int PACKETS = Q == 1 ? 2 : 1;  // of a centroid on their way at once
#pragma unroll 1
  for (int begin = threadIdx.x % LANES * V; begin < head_dim; begin += PACKETS * LANES * V) {
    Packet<float, V> y[BLOCKS][PACKETS];
#pragma unroll
    for (int j = 0; j < BLOCKS; j++) {
      const float* centroid = centroids[j * GROUPS];
#pragma unroll
      for (int p = 0; p < PACKETS; p++) {
        const int c = begin + p * LANES * V;
        y[j][p] = c < head_dim ? load<float, V>(centroid + c) : Packet<float, V>{};
      }
    }
#pragma unroll
    for (int p = 0; p < PACKETS; p++) {
      const int c = begin + p * LANES * V;
      if (c >= head_dim) break;
#pragma unroll
      for (int i = 0; i < Q; i++) {
        float x[V];
        unpack(x, load<float, V>(queries + i * head_dim + c));
#pragma unroll
        for (int j = 0; j < BLOCKS; j++) {
          float z[V];
          unpack(z, y[j][p]);
#pragma unroll
          for (int e = 0; e < V; e++) sums[i][j] += x[e] * z[e];
        }
      }
    }
  }
}

// scores[i][b]: of row i against block begin + b. There must be a row and a block. Every thread of the CTA calls it.
// q: [T, H, d]. centroids: rows [Hkv, d], laid out by `pages`. Dynamic shared memory: float32 [Q][d].
template <typename T, int Q>
__device__ __forceinline__ void span_scores(float (&scores)[Q][SPAN], const SpanTask& task, const T* __restrict__ q,
                                            const float* __restrict__ centroids, Pages pages, int head_dim) {
  static_assert(Q <= LANES, "a lane writes the scores of a row");
  __shared__ const float* of_block[SPAN];
  const int blocks = task.end - task.begin;
  for (int i = threadIdx.x; i < ceil_div(blocks, AT_ONCE) * AT_ONCE; i += THREADS) {
    const int block = task.begin + min(i, blocks - 1);  // all lanes stay for the sums
    const long long row = pages.row(task.range.first_key_block, block);
    of_block[i] = centroids + (row * (task.heads / task.group_heads) + task.kv_head) * head_dim;
  }
  float* queries = reinterpret_cast<float*>(sharedMemory);
  for (int at = threadIdx.x; at < Q * head_dim; at += THREADS) {
    const int i = at / head_dim;
    queries[at] = i < task.count ? to_float(q[task.row(i) * head_dim + at % head_dim]) : 0.0f;
  }
  __syncthreads();

  const int group = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  for (int first = 0; first < blocks; first += AT_ONCE) {
    float sums[Q][BLOCKS] = {};
    if (head_dim % PER_16_BYTES<float> == 0) {
      add_products<PER_16_BYTES<float>>(sums, of_block + first + group, queries, head_dim);
    } else {
      add_products<1>(sums, of_block + first + group, queries, head_dim);
    }
#pragma unroll
    for (int i = 0; i < Q; i++) {
#pragma unroll
      for (int j = 0; j < BLOCKS; j++) {
        const float sum = warp_sum<LANES>(sums[i][j]);
        if (lane == i) scores[i][first + group + j * GROUPS] = sum;
      }
    }
  }
  __syncthreads();
}
