// Gradients of keys and values from float32 pieces: the sum of a chunk's pieces in order.
#include "backward/block_range.cuh"
#include "common/elements.cuh"
#include "common/warp.cuh"

constexpr int THREADS = 128;

// pieces: [pieces, 2, chunk_keys, d]. piece_ranges: [key heads taken, blocks], {first piece of the first chunk, pieces of
// a chunk}. dk, dv: [Tk, Hkv, d], d a multiple of 8. Grid: (blocks of the ranges · chunks, key heads taken).
template <typename T>
__device__ __forceinline__ void sum_pieces(const float* pieces, const int2* piece_ranges, const Range* ranges, T* dk,
                                           T* dv, int range_count, int blocks, int chunks, int chunk_keys,
                                           int block_size, int first_head, int heads, int head_dim) {
  const int column = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const int2 found = piece_ranges[static_cast<long long>(blockIdx.y) * blocks + column];
  if (found.y == 1) return;  // its item has written it
  const Range range = range_of_block(ranges, range_count, column);
  const int first_key = (column - range.first_block) * block_size + chunk * chunk_keys;
  const int keys = min(min(chunk_keys, block_size - chunk * chunk_keys), range.keys - first_key);
  const int packets = head_dim / 8, tensor = chunk_keys * head_dim;
  const float* source = pieces + 2ll * (found.x + chunk * found.y) * tensor;
  for (int i = threadIdx.x; i < 2 * keys * packets; i += THREADS) {
    const int which = i / (keys * packets), row = i / packets % keys, at = i % packets * 8;
    const float* from = source + which * tensor + row * head_dim + at;
    float sum[8] = {};
    for (int piece = 0; piece < found.y; piece++, from += 2 * tensor) {
      float x[4], y[4];
      unpack(x, load<float, 4>(from));
      unpack(y, load<float, 4>(from + 4));
#pragma unroll
      for (int j = 0; j < 4; j++) {
        sum[j] += x[j];
        sum[j + 4] += y[j];
      }
    }
    const long long key = range.key_begin + first_key + row;
    store((which == 0 ? dk : dv) + (key * heads + first_head + blockIdx.y) * head_dim + at, sum);
  }
}

#define SUM_PIECES(SUFFIX, T)                                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS) sum_pieces_##SUFFIX(                                 \
      const float* pieces, const int2* piece_ranges, const Range* ranges, T* dk, T* dv, int range_count,     \
      int blocks, int chunks, int chunk_keys, int block_size, int first_head, int heads, int head_dim) {     \
    sum_pieces<T>(pieces, piece_ranges, ranges, dk, dv, range_count, blocks, chunks, chunk_keys, block_size, \
                  first_head, heads, head_dim);                                                              \
  }

SUM_PIECES(bf16, bf16)
SUM_PIECES(f16, f16)
