// Scores of a few queries against many centroids, written out: the first half of routing when one query a sequence
// has to occupy the whole device (decoding), or when its list of blocks is too long for registers (k > 64).
// select_short and select_long are the second half.
//
// A CTA takes 128 blocks of one key head for up to Q of the queries that share it, of all G query heads: so the
// centroids, which are most of the traffic, are read once. 8 lanes lie along a centroid.
#include "common/elements.cuh"
#include "common/range.cuh"
#include "common/shared.cuh"
#include "common/warp.cuh"

constexpr int THREADS = 256;
constexpr int LANES = 8;
constexpr int SPAN = 128;

// q: [T, H, d]. centroids: rows [Hkv, d], laid out by `pages`. scores: row (token − first_token)·H + head, `stride`
// floats each.
// Grid: (ranges · spans, Hkv, groups of Q query rows of the longest range).
template <typename T, int Q>
__device__ __forceinline__ void block_scores(const T* __restrict__ q, const float* __restrict__ centroids, Pages pages,
                                             const Range* ranges, float* scores, int heads, int kv_heads, int head_dim,
                                             int block_size, int causal, int spans, int first_token, int stride) {
  __shared__ float span_scores[Q][SPAN];
  const Range range = ranges[blockIdx.x / spans];
  const int last_position = range.first_position + range.queries - 1;
  const int most = causal ? max(0, own_block(last_position, block_size)) : ceil_div(range.keys, block_size);
  const int begin = blockIdx.x % spans * SPAN, end = min(begin + SPAN, most);
  const int group_heads = heads / kv_heads;
  const int first = blockIdx.z * Q, count = min(Q, range.queries * group_heads - first);
  if (begin >= end || count <= 0) return;

  // Row i of this CTA's queries, of Q·H rows [token][head].
  const auto query_row = [&](int i) {
    const int token = range.query_begin + (first + i) / group_heads;
    return static_cast<long long>(token) * heads + blockIdx.y * group_heads + (first + i) % group_heads;
  };
  float* queries = reinterpret_cast<float*>(sharedMemory);  // [Q][d]
  for (int i = 0; i < Q; i++) {
    for (int c = threadIdx.x; c < head_dim; c += THREADS) {
      queries[i * head_dim + c] = i < count ? to_float(q[query_row(i) * head_dim + c]) : 0.0f;
    }
  }
  __syncthreads();

  const int lane = threadIdx.x % LANES;
  const bool aligned = head_dim % PER_16_BYTES<float> == 0;
  for (int base = begin; base < end; base += THREADS / LANES) {
    const int block = base + threadIdx.x / LANES;
    const int row = min(block, end - 1);  // all lanes stay for the sums
    const float* centroid =
        centroids + (pages.row(range.first_key_block, row) * kv_heads + blockIdx.y) * head_dim;
    float sums[Q] = {};
    if (aligned) {
#pragma unroll 4
      for (int c = lane * 4; c < head_dim; c += LANES * 4) {
        float y[4];
        unpack(y, load<float, 4>(centroid + c));
#pragma unroll
        for (int i = 0; i < Q; i++) {
          const float4 x = *reinterpret_cast<const float4*>(queries + i * head_dim + c);
          sums[i] += x.x * y[0] + x.y * y[1] + x.z * y[2] + x.w * y[3];
        }
      }
    } else {
      for (int c = lane; c < head_dim; c += LANES) {
#pragma unroll
        for (int i = 0; i < Q; i++) sums[i] += queries[i * head_dim + c] * centroid[c];
      }
    }
#pragma unroll
    for (int i = 0; i < Q; i++) {
      const float sum = warp_sum<LANES>(sums[i]);
      if (lane == i && block < end) span_scores[i][block - begin] = sum;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count * SPAN; i += THREADS) {
    const int block = begin + i % SPAN;
    const long long row = query_row(i / SPAN) - static_cast<long long>(first_token) * heads;
    if (block < end) scores[row * stride + block] = span_scores[i / SPAN][i % SPAN];
  }
}

#define BLOCK_SCORES(NAME, T, Q)                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                           \
      NAME(const T* q, const float* centroids, const int* page_table, int blocks_per_page, const Range* ranges,      \
           float* scores, int heads, int kv_heads, int head_dim, int block_size, int causal, int spans,              \
           int first_token, int stride) {                                                                            \
    block_scores<T, Q>(q, centroids, Pages{page_table, blocks_per_page}, ranges, scores, heads, kv_heads, head_dim,  \
                       block_size, causal, spans, first_token, stride);                                              \
  }

BLOCK_SCORES(block_scores_f32_1, f32, 1)
BLOCK_SCORES(block_scores_f32_4, f32, 4)
BLOCK_SCORES(block_scores_f32_8, f32, 8)
BLOCK_SCORES(block_scores_f16_1, f16, 1)
BLOCK_SCORES(block_scores_f16_4, f16, 4)
BLOCK_SCORES(block_scores_f16_8, f16, 8)
BLOCK_SCORES(block_scores_bf16_1, bf16, 1)
BLOCK_SCORES(block_scores_bf16_4, bf16, 4)
BLOCK_SCORES(block_scores_bf16_8, bf16, 8)
