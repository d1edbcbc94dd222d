// What a step of decoding with a paged cache begins with: the new keys and values go into the cache and into the running
// block means, and the ranges that the step's other kernels read are written. All of it follows from the lengths of the
// sequences on the device: so a captured graph, which cannot know them, can be replayed step after step.
//
// A CTA takes one sequence, a thread one packet of channels at a time. Means: append.cu.
#include "common/elements.cuh"
#include "common/range.cuh"

constexpr int THREADS = 128;

// lengths: of the sequences; each gets `added` new tokens, which are its queries. One of length −1 pauses: its queries
// come before all keys. k, v: [sequences · added, channels]. cache_k, cache_v: rows [channels], laid out by `pages`.
// means: float32 rows [channels], one a block, laid out by `mean_pages`. pages_per_sequence: the width of the page table.
// counters: [counter_count], to be zero for what follows. Grid: (sequences).
template <typename T, int V>
__device__ __forceinline__ void advance(const T* __restrict__ k, const T* __restrict__ v, T* cache_k, T* cache_v,
                                        Pages pages, float* means, Pages mean_pages, int* lengths, Range* ranges,
                                        unsigned* counters, int counter_count, int added, int channels, int block_size,
                                        int pages_per_sequence) {
  const int sequence = blockIdx.x, table = sequence * pages_per_sequence;
  const int length = lengths[sequence];
  const bool pauses = length < 0;
  const int before = pauses ? -added : length, after = before + added;
  for (int i = sequence * THREADS + threadIdx.x; i < counter_count; i += gridDim.x * THREADS) counters[i] = 0;
  __syncthreads();  // all have read the length
  if (threadIdx.x == 0) {
    if (!pauses) lengths[sequence] = after;
    ranges[sequence] = Range{sequence * added, added, table, after, before, ceil_div(after, block_size), 0, table};
  }
  if (pauses) return;

  for (int channel = threadIdx.x * V; channel < channels; channel += THREADS * V) {
    for (int begin = before, end; begin < after; begin = end) {
      const int block = begin / block_size, block_begin = block * block_size;
      end = min(after, block_begin + block_size);
      const long long first_row = pages.row(table, block_begin);
      float* target = means + mean_pages.row(table, block) * channels + channel;
      float mean[V] = {}, sum[V] = {};
      if (begin > block_begin) {  // what was there before a block's first key means nothing
#pragma unroll
        for (int c = 0; c < V; c++) mean[c] = target[c];
      }
      for (int position = begin; position < end; position++) {
        const long long source = static_cast<long long>(sequence * added + position - before) * channels + channel;
        const long long at = (first_row + position - block_begin) * channels + channel;
        const Packet<T, V> key = load<T, V>(k + source), value = load<T, V>(v + source);
        *reinterpret_cast<Packet<T, V>*>(cache_k + at) = key;
        *reinterpret_cast<Packet<T, V>*>(cache_v + at) = value;
        float x[V];
        unpack(x, key);
#pragma unroll
        for (int c = 0; c < V; c++) sum[c] += x[c] - mean[c];
      }
#pragma unroll
      for (int c = 0; c < V; c++) target[c] = mean[c] + sum[c] / (end - block_begin);
    }
  }
}

#define ADVANCE(NAME, T, V)                                                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
      NAME(const T* k, const T* v, T* cache_k, T* cache_v, const int* page_table, int page_size, float* means,       \
           int blocks_per_page, int* lengths, Range* ranges, unsigned* counters, int counter_count, int added,       \
           int channels, int block_size, int pages_per_sequence) {                                                   \
    advance<T, V>(k, v, cache_k, cache_v, Pages{page_table, page_size}, means, Pages{page_table, blocks_per_page},   \
                  lengths, ranges, counters, counter_count, added, channels, block_size, pages_per_sequence);        \
  }

// Rows of a multiple of 16 bytes, and any rows.
ADVANCE(advance_f32, f32, 4)
ADVANCE(advance_f16, f16, 8)
ADVANCE(advance_bf16, bf16, 8)
ADVANCE(advance_f32_scalar, f32, 1)
ADVANCE(advance_f16_scalar, f16, 1)
ADVANCE(advance_bf16_scalar, bf16, 1)
