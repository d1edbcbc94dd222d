// Rows of slots in 10 bits an element instead of bf16's 16: each 64 columns of a row are multiples of a step of their own.
// A row of 128 takes 160 bytes instead of 256, one of 64 takes 96 instead of 128. An element's error is at most 0.001 of the
// largest magnitude among its 64 columns; the mean error of columns that are alike in size is that of bf16. Rows beyond 8e37
// come out of a sum as NaN.
//
// Partial outputs have notes. A row of 64 has its note in spare words. Of rows of 128 the first 128 bytes lie together, a line
// each; behind all of them are their tails of 32 bytes, and the notes in an array of their own.
//
// Lanes of a quad hold columns as matrix products leave them: lane l, of 64 columns, has 8j + 2l + {0, 1}, j = 0 … 7, as values
// 2j + {0, 1}. They take five words of a lane: 8 pairs of 10 + 10 bits, of which three are spread over the spare bits of the
// others.
#pragma once
#include "common/pairs.cuh"
#include "ptx/max_nan.cuh"

// Of a row of partial outputs: its lse, base 2, and its steps.
struct alignas(8) PackedNote {
  float lse;
  uint32_t steps;
};

namespace packed {

// f16 has three bits more, which ten bits would lose.
template <typename T>
constexpr bool PACKS = false;
template <>
constexpr bool PACKS<bf16> = true;

constexpr float ZERO = 512, LARGEST = 511;  // what stands for 0; the largest multiple

// Where pairs 5, 6 and 7 are, the same in both halves: {pair, from bit, word, to bit, bits}.
struct Spread {
  int parts[7][5] = {{5, 0, 0, 10, 6}, {5, 6, 1, 10, 4}, {6, 0, 1, 14, 2}, {6, 2, 2, 10, 6},
                     {6, 8, 3, 10, 2}, {7, 0, 3, 12, 4}, {7, 4, 4, 10, 6}};
};

// The step of a 64 columns' number `part`, from a row's two.
__device__ __forceinline__ float step_of(uint32_t steps, int part) {
  return __uint_as_float(part == 0 ? steps << 16 : steps & 0xffff0000u);
}

// Whether rows of D columns have words to spare for their note.
template <int D>
constexpr bool NOTED = D == 64;

// The largest magnitude of a lane's values of 64 columns; NaN of a NaN.
__device__ __forceinline__ float largest_of(const float (&x)[16]) {
  float largest[4];
#pragma unroll
  for (int i = 0; i < 4; i++) largest[i] = ptx::max_nan(fabsf(x[i]), fabsf(x[i + 4]));
#pragma unroll
  for (int i = 8; i < 16; i++) largest[i % 4] = ptx::max_nan(largest[i % 4], fabsf(x[i]));
  return ptx::max_nan(ptx::max_nan(largest[0], largest[1]), ptx::max_nan(largest[2], largest[3]));
}

// A lane's words of a row of D columns. In memory: 16 bytes a lane of each 64 columns, then 8 bytes a lane with their last
// words, so that a quad writes whole sectors. Of a row of 64 half of those are spare.
template <int D>
struct Row {
  static constexpr int PARTS = D / 64, BYTES = 64 * PARTS + 32;
  static constexpr int TAIL_BYTES = NOTED<D> ? 0 : 32, NOTED_BYTES = BYTES - TAIL_BYTES;  // of rows with notes

  uint4 most[PARTS];
  uint32_t last[2];
  uint32_t steps;  // as two bf16

  __device__ __forceinline__ Row() : last{}, steps(0) {}

  // Where the tails of so many rows with notes are: behind them.
  static __device__ __forceinline__ unsigned char* tails_of(void* rows, long long count) {
    return static_cast<unsigned char*>(rows) + count * NOTED_BYTES;
  }

  // Packs `factor` · x, values of 64 columns. All lanes of the warp call it. NaN and Infinity go to the step.
  __device__ __forceinline__ void pack(int part, const float (&x)[16], float factor) {
    float largest = largest_of(x);
#pragma unroll
    for (int lane = 1; lane < 4; lane *= 2) largest = ptx::max_nan(largest, __shfl_xor_sync(~0u, largest, lane));
    pack(part, x, factor, largest);
  }

  // The same, given the largest magnitude of the 64 columns.
  __device__ __forceinline__ void pack(int part, const float (&x)[16], float factor, float largest) {
    // Not less than needed for being rounded, and not so small that its inverse overflows.
    const bf16 step = from_float<bf16>(ptx::max_nan(largest * fabsf(factor), 1e-34f) * (1.004f / LARGEST));
    steps |= static_cast<uint32_t>(__bfloat16_as_ushort(step)) << (16 * part);

    const float multiples = __fdividef(factor, to_float(step));
    uint32_t pairs[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {  // the last bits of such a sum are the integer next to it
      pairs[j] = __byte_perm(__float_as_uint(fmaf(x[2 * j], multiples, 8388608.0f + ZERO)),
                             __float_as_uint(fmaf(x[2 * j + 1], multiples, 8388608.0f + ZERO)), 0x5410);
    }
    constexpr Spread spread;
#pragma unroll
    for (int i = 0; i < 7; i++) {
      const auto& [pair, from, word, to, bits] = spread.parts[i];
      pairs[word] |= pairs[pair] << (to - from) & ((0x10001u << bits) - 0x10001u) << to;
    }
    most[part] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    last[part] = pairs[4];
  }

  __device__ __forceinline__ void store(void* rows, long long row) const {
    char* target = static_cast<char*>(rows) + row * BYTES;
    const int lane = threadIdx.x % 4;
#pragma unroll
    for (int part = 0; part < PARTS; part++) __stcs(reinterpret_cast<uint4*>(target) + 4 * part + lane, most[part]);
    __stcs(reinterpret_cast<uint2*>(target + 64 * PARTS) + lane, make_uint2(last[0], last[1]));
  }

  // Stores a row of partial outputs and its note; a negative row is not there. All lanes of the warp call it.
  //
  // Of 128 columns two quads write first the one's row together, then the other's: one request for a line each, not two.
  __device__ __forceinline__ void store_noted(void* rows, void* tails, PackedNote* notes, int row, float lse) {
    const int lane = threadIdx.x % 4;
    if constexpr (NOTED<D>) {
      if (row < 0) return;
      last[1] = lane == 0 ? __float_as_uint(lse) : steps;  // lane 1 has the steps
      store(rows, row);
    } else {
      const int upper = threadIdx.x / 4 % 2;
      const uint4 given = upper ? most[0] : most[1];
      const uint4 taken = make_uint4(__shfl_xor_sync(~0u, given.x, 4), __shfl_xor_sync(~0u, given.y, 4),
                                     __shfl_xor_sync(~0u, given.z, 4), __shfl_xor_sync(~0u, given.w, 4));
      const int other_row = __shfl_xor_sync(~0u, row, 4);
#pragma unroll
      for (int turn = 0; turn < 2; turn++) {
        const int target = upper == turn ? row : other_row;
        if (target < 0) continue;
        __stcs(static_cast<uint4*>(rows) + 8ll * target + 4 * upper + lane, upper == turn ? most[turn] : taken);
      }
      if (row < 0) return;
      __stcs(static_cast<uint2*>(tails) + 4ll * row + lane, make_uint2(last[0], last[1]));
      if (lane == 0) notes[row] = {lse, steps};
    }
  }

  // Stores a row of 64 columns as the part of a row of `Columns`.
  template <int Columns>
  __device__ __forceinline__ void store_part(void* rows, long long row, int part) const {
    if constexpr (Columns == 64) return store(rows, row);
    char* target = static_cast<char*>(rows) + row * Row<Columns>::BYTES;
    const int lane = threadIdx.x % 4;
    __stcs(reinterpret_cast<uint4*>(target) + 4 * part + lane, most[0]);
    __stcs(reinterpret_cast<uint32_t*>(target + Columns) + 2 * lane + part, last[0]);
  }

  // From a row with a note in shared memory, and its tail.
  __device__ __forceinline__ void load_shared(const unsigned char* row, const unsigned char* tail) {
    const int lane = threadIdx.x % 4;
#pragma unroll
    for (int part = 0; part < PARTS; part++) most[part] = reinterpret_cast<const uint4*>(row)[4 * part + lane];
    const uint2 words = reinterpret_cast<const uint2*>(NOTED<D> ? row + 64 * PARTS : tail)[lane];
    last[0] = words.x;
    last[1] = words.y;
  }

  // The note in a row in shared memory.
  static __device__ __forceinline__ PackedNote note_shared(const unsigned char* row) {
    static_assert(NOTED<D>);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(row + 64 * PARTS);
    return {__uint_as_float(words[1]), words[3]};
  }

  __device__ __forceinline__ void load(const void* rows, long long row) {
    const char* source = static_cast<const char*>(rows) + row * BYTES;
    const int lane = threadIdx.x % 4;
#pragma unroll
    for (int part = 0; part < PARTS; part++) most[part] = __ldcs(reinterpret_cast<const uint4*>(source) + 4 * part + lane);
    const uint2 words = __ldcs(reinterpret_cast<const uint2*>(source + 64 * PARTS) + lane);
    last[0] = words.x;
    last[1] = words.y;
  }
};

// Sums of rows, weighted: a lane's values of 64 columns.
struct Sum {
  float sums[16] = {};
  float weights = 0;

  __device__ __forceinline__ void scale(float factor) {
    weights *= factor;
#pragma unroll
    for (float& x : sums) x *= factor;
  }

  // Adds `weight` times what is packed in a row with this step.
  template <int D>
  __device__ __forceinline__ void add(const Row<D>& row, int part, float weight, float step) {
    const uint4& most = row.most[part];
    uint32_t pairs[8] = {most.x, most.y, most.z, most.w, row.last[part]};
    constexpr Spread spread;
#pragma unroll
    for (int i = 0; i < 7; i++) {
      const auto& [pair, from, word, to, bits] = spread.parts[i];
      pairs[pair] |= pairs[word] >> (to - from) & ((0x10001u << bits) - 0x10001u) << from;
    }
    weight *= step;
    weights += weight;
#pragma unroll
    for (int j = 0; j < 8; j++) {  // as the last bits of an f16, on top of 1024: that comes off in the end
      const uint32_t bits = (pairs[j] & 0x03ff03ff) | 0x64006400;
      const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&bits));
      sums[2 * j] = fmaf(weight, both.x, sums[2 * j]);
      sums[2 * j + 1] = fmaf(weight, both.y, sums[2 * j + 1]);
    }
  }

  // `factor` times the sums, as bf16: lane l of a quad gets the columns 8(4i + l) … 8(4i + l) + 7 of the 64.
  __device__ __forceinline__ uint4 piece(int i, float factor) const {
    const auto value = [&](int x) { return fmaf(weights, -(1024 + ZERO), sums[8 * i + x]) * factor; };
    uint32_t words[4];
#pragma unroll
    for (int u = 0; u < 4; u++) words[u] = ::pack<bf16>(value(2 * u), value(2 * u + 1));
    transpose_quad(words);
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

}  // namespace packed
