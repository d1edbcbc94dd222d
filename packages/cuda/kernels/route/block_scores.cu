// Scores of a few queries against many centroids, written out: for lists of blocks that are too long for select_short.
// select_long chooses by them.
#include "route/span_scores.cuh"

// scores: row (token − first_token)·H + head, `stride` floats each. Grid and the other arguments: span_scores.cuh.
template <typename T, int Q>
__device__ __forceinline__ void block_scores(const T* q, const float* centroids, Pages pages, const Range* ranges,
                                             float* scores, int heads, int kv_heads, int head_dim, int block_size,
                                             int causal, int spans, int span_blocks, int first_token, int stride) {
  __shared__ float of_span[Q][SPAN];
  __shared__ SpanTask task;
  if (threadIdx.x == 0) task = SpanTask::of<Q>(ranges, heads, kv_heads, block_size, causal, spans, span_blocks);
  __syncthreads();
  if (task.count <= 0 || task.begin >= task.end) return;
  span_scores(of_span, task, q, centroids, pages, head_dim);
  for (int i = 0; i < task.count; i++) {
    float* of_row = scores + (task.row(i) - static_cast<long long>(first_token) * heads) * stride;
    for (int block = task.begin + threadIdx.x; block < task.end; block += THREADS) {
      of_row[block] = of_span[i][block - task.begin];
    }
  }
}

#define BLOCK_SCORES(NAME, T, Q)                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, CTAS<Q>)                                                     \
      NAME(const T* q, const float* centroids, const int* page_table, int blocks_per_page, const Range* ranges,      \
           float* scores, int heads, int kv_heads, int head_dim, int block_size, int causal, int spans,              \
           int span_blocks, int first_token, int stride) {                                                           \
    block_scores<T, Q>(q, centroids, Pages{page_table, blocks_per_page}, ranges, scores, heads, kv_heads, head_dim,  \
                       block_size, causal, spans, span_blocks, first_token, stride);                                 \
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
