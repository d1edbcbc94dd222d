// Block centroids (arXiv 2511.11571, section 2): the mean of each block's real keys, accumulated in float32.
//
// A key token is a row of Hkv·d channels. A CTA takes 16 packets of channels (256 bytes of a row) of one block, or of
// several small blocks: 16 threads lie across the channels, `lanes` along the rows of a block, each with 8 rows on
// their way.
#include "common/elements.cuh"
#include "common/range.cuh"

constexpr int THREADS = 128;
constexpr int COLUMNS = 16;  // packets of channels
constexpr int ROWS_AT_ONCE = 8;

template <typename T, int V>
__device__ __forceinline__ void add(float (&sum)[V], Packet<T, V> packet) {
  float x[V];
  unpack(x, packet);
#pragma unroll
  for (int c = 0; c < V; c++) sum[c] += x[c];
}

// cu_keys, cu_blocks: where each sequence's keys and blocks begin, batch + 1 entries each.
// means: [blocks, Hkv, d]. rounded: the same in the keys' dtype, head-major, [Hkv, blocks, d]; null: not wanted.
template <typename T, int V>
__device__ __forceinline__ void centroids(const T* __restrict__ keys, const int* cu_keys, const int* cu_blocks,
                                          int batch, int block_size, int kv_heads, int head_dim, int lanes,
                                          float* means, T* rounded) {
  __shared__ float partial[V][THREADS];
  const int blocks = cu_blocks[batch];
  const int channels = kv_heads * head_dim;
  const int channel = (blockIdx.y * COLUMNS + threadIdx.x % COLUMNS) * V;
  const int lane = threadIdx.x / COLUMNS % lanes;
  const int block = blockIdx.x * (THREADS / COLUMNS / lanes) + threadIdx.x / COLUMNS / lanes;
  const bool active = block < blocks && channel < channels;

  float sum[V] = {};
  int rows = 0;
  if (active) {
    const int sequence = sequence_of(cu_blocks, batch, block);
    const int begin = cu_keys[sequence] + (block - cu_blocks[sequence]) * block_size;
    rows = min(block_size, cu_keys[sequence + 1] - begin);
    const T* source = keys + static_cast<long long>(begin) * channels + channel;
    int row = lane;
    for (; row + (ROWS_AT_ONCE - 1) * lanes < rows; row += ROWS_AT_ONCE * lanes) {
      Packet<T, V> packets[ROWS_AT_ONCE];
#pragma unroll
      for (int i = 0; i < ROWS_AT_ONCE; i++) {
        packets[i] = load<T, V>(source + static_cast<long long>(row + i * lanes) * channels);
      }
      float group[V] = {};  // summed by itself first, which loses fewer digits in a long sum
#pragma unroll
      for (int i = 0; i < ROWS_AT_ONCE; i++) add(group, packets[i]);
#pragma unroll
      for (int c = 0; c < V; c++) sum[c] += group[c];
    }
    for (; row < rows; row += lanes) add(sum, load<T, V>(source + static_cast<long long>(row) * channels));
  }
#pragma unroll
  for (int c = 0; c < V; c++) partial[c][threadIdx.x] = sum[c];
  __syncthreads();
  if (!active || lane != 0) return;

#pragma unroll
  for (int c = 0; c < V; c++) {
    for (int other = 1; other < lanes; other++) sum[c] += partial[c][threadIdx.x + other * COLUMNS];
    sum[c] /= rows;
  }
  float* mean = means + static_cast<long long>(block) * channels + channel;
#pragma unroll
  for (int c = 0; c < V; c++) mean[c] = sum[c];
  if (rounded == nullptr) return;
#pragma unroll
  for (int c = 0; c < V; c++) {
    const long long row = static_cast<long long>((channel + c) / head_dim) * blocks + block;
    rounded[row * head_dim + (channel + c) % head_dim] = from_float<T>(sum[c]);
  }
}

#define CENTROIDS(NAME, T, V)                                                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
      NAME(const T* keys, const int* cu_keys, const int* cu_blocks, int batch, int block_size, int kv_heads,         \
           int head_dim, int lanes, float* means, T* rounded) {                                                      \
    centroids<T, V>(keys, cu_keys, cu_blocks, batch, block_size, kv_heads, head_dim, lanes, means, rounded);         \
  }

// Rows of a multiple of 16 bytes, and any rows.
CENTROIDS(centroids_f32, f32, 4)
CENTROIDS(centroids_f16, f16, 8)
CENTROIDS(centroids_bf16, bf16, 8)
CENTROIDS(centroids_f32_scalar, f32, 1)
CENTROIDS(centroids_f16_scalar, f16, 1)
CENTROIDS(centroids_bf16_scalar, bf16, 1)
