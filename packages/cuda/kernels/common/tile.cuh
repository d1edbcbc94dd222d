// Tiles of rows of D elements of 2 bytes in shared memory, copied there asynchronously.
#pragma once
#include <cstdint>

#include "common/warp.cuh"
#include "ptx/cp_async.cuh"

// The same number, but what is computed from it is computed here and now: between matrix products that fill the registers, none
// is left to keep addresses in.
__device__ __forceinline__ int anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Pieces of 16 bytes are swizzled: the same piece of eight rows, which is what a matrix load reads, lies in all 32 banks.
template <int D>
struct Tile {
  static_assert(D % 32 == 0, "rows of a multiple of 64 bytes");
  static constexpr int PIECES = D / 8;
  static constexpr int ROW_BYTES = D * 2;

  // Of rows that are a multiple of 128 bytes, all begin at the same bank; of others, every second one does.
  static __device__ __forceinline__ int swizzle(int row) { return PIECES % 8 == 0 ? row % 8 : row / 2 % 4; }

  // Where a piece lies, from the beginning of the tile, in bytes.
  static __device__ __forceinline__ uint32_t offset(int row, int piece) {
    return row * ROW_BYTES + ((piece ^ swizzle(row)) << 4);
  }

  // Neighbouring threads copy that many pieces of a row: so many rows at once fill all banks.
  static constexpr int ABREAST = PIECES % 8 == 0 ? 8 : 4;

  // All `Threads` threads copy `Rows` rows that lie `stride` elements apart; those from row `valid` on become zeros.
  template <int Rows, int Threads, typename T>
  static __device__ __forceinline__ void copy_rows(uint32_t tile, const T* source, long long stride, int valid) {
    const int thread = anew(threadIdx.x), column = thread % ABREAST;
    int row = thread / ABREAST;
    source += row * stride + column * 8;
#pragma unroll
    for (int i = 0; i < Rows * ABREAST / Threads; i++, row += Threads / ABREAST, source += Threads / ABREAST * stride) {
#pragma unroll
      for (int piece = 0; piece < PIECES; piece += ABREAST) {
        ptx::copy_16_or_zero(tile + offset(row, piece + column), source + piece * 8, row < valid);
      }
    }
  }

  // A warp copies `Rows` rows of its own; lane r holds the offset of row r in elements, negative: the row becomes zeros.
  template <int Rows, typename T>
  static __device__ __forceinline__ void gather_rows(uint32_t tile, const T* source, long long offset_of_lane) {
#pragma unroll 1  // this is between matrix products that need the registers
    for (int i = 0, lane = anew(lane_id()); i < Rows; i += WARP / ABREAST) {
      const int row = i + lane / ABREAST;
      const long long from = __shfl_sync(ALL_LANES, offset_of_lane, row);
#pragma unroll
      for (int piece = lane % ABREAST; piece < PIECES; piece += ABREAST) {
        ptx::copy_16_or_zero(tile + offset(row, piece), source + from + piece * 8, from >= 0);
      }
    }
  }
};
