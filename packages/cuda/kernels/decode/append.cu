// New keys and values into a cache, and the new keys into its running block means, in one launch.
//
// A CTA takes one block of one sequence and 16 packets of channels: 16 threads lie across the channels, 8 along the
// block's new rows. With a block's mean m of c₀ keys so far, new keys k_1 … k_n make it m + Σ (k_i − m) / (c₀ + n),
// which is what taking one key after the other into the mean comes to.
#include "common/elements.cuh"
#include "common/range.cuh"

constexpr int THREADS = 128;
constexpr int COLUMNS = 16;  // packets of channels
constexpr int LANES = THREADS / COLUMNS;

// ranges: one a sequence; its queries are the new tokens, their first position the length of the sequence before, its
// keys the length after. k, v: [T, channels]. cache_k, cache_v: rows [channels], laid out by `pages`; null: only the
// means are wanted.
// means: float32 rows [channels], one a block, laid out by `mean_pages`.
// Grid: (ranges · most blocks that new keys fall into, packets / COLUMNS).
template <typename T, int V>
__device__ __forceinline__ void append(const T* __restrict__ k, const T* __restrict__ v, T* cache_k, T* cache_v,
                                       Pages pages, float* means, Pages mean_pages, const Range* ranges, int channels,
                                       int block_size, int most_blocks) {
  __shared__ float partial[V][THREADS];
  const Range range = ranges[blockIdx.x / most_blocks];
  const int block = range.first_position / block_size + blockIdx.x % most_blocks;
  const int block_begin = block * block_size;
  const int begin = max(block_begin, range.first_position), end = min(block_begin + block_size, range.keys);
  if (begin >= end || begin < 0) return;  // before the first key: a sequence that pauses
  const int channel = (blockIdx.y * COLUMNS + threadIdx.x % COLUMNS) * V;
  const int lane = threadIdx.x / COLUMNS;
  const bool active = channel < channels;

  float* target = means + mean_pages.row(range.first_key_block, block) * channels + channel;
  float mean[V] = {}, sum[V] = {};
  if (active) {
    if (begin > block_begin) {  // what was there before a block's first key means nothing
#pragma unroll
      for (int c = 0; c < V; c++) mean[c] = target[c];
    }
    const long long first_row = cache_k == nullptr ? 0 : pages.row(range.key_begin, block_begin);
    for (int position = begin + lane; position < end; position += LANES) {
      const long long source = static_cast<long long>(range.query_begin + position - range.first_position) * channels;
      const Packet<T, V> key = load<T, V>(k + source + channel);
      if (cache_k != nullptr) {
        const long long at = (first_row + position - block_begin) * channels + channel;
        const Packet<T, V> value = load<T, V>(v + source + channel);
        *reinterpret_cast<Packet<T, V>*>(cache_k + at) = key;
        *reinterpret_cast<Packet<T, V>*>(cache_v + at) = value;
      }
      float x[V];
      unpack(x, key);
#pragma unroll
      for (int c = 0; c < V; c++) sum[c] += x[c] - mean[c];
    }
  }
#pragma unroll
  for (int c = 0; c < V; c++) partial[c][threadIdx.x] = sum[c];
  __syncthreads();
  if (!active || lane != 0) return;
#pragma unroll
  for (int c = 0; c < V; c++) {
    for (int other = 1; other < LANES; other++) sum[c] += partial[c][threadIdx.x + other * COLUMNS];
    target[c] = mean[c] + sum[c] / (end - block_begin);
  }
}

#define APPEND(NAME, T, V)                                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS, 6)                                                           \
      NAME(const T* k, const T* v, T* cache_k, T* cache_v, const int* page_table, int page_size, float* means,       \
           int blocks_per_page, const Range* ranges, int channels, int block_size, int most_blocks) {                \
    append<T, V>(k, v, cache_k, cache_v, Pages{page_table, page_size}, means, Pages{page_table, blocks_per_page},    \
                 ranges, channels, block_size, most_blocks);                                                         \
  }

// Rows of a multiple of 16 bytes, and any rows.
APPEND(append_f32, f32, 4)
APPEND(append_f16, f16, 8)
APPEND(append_bf16, bf16, 8)
APPEND(append_f32_scalar, f32, 1)
APPEND(append_f16_scalar, f16, 1)
APPEND(append_bf16_scalar, bf16, 1)
