// Rows of packed sequences copied to other places: those of a sequence stay in a row.
#include "common/range.cuh"

constexpr int THREADS = 256;
constexpr int UNITS = 4;  // a thread

// ranges: query_begin is a sequence's first row in the source, key_begin in the target. A row is `row_units` units.
// Grid: (ranges · tiles of the longest range); a tile is 1024 units.
template <typename Unit>
__device__ __forceinline__ void copy_rows(const Unit* __restrict__ source, Unit* __restrict__ target,
                                          const Range* ranges, int row_units, int tiles) {
  const Range range = ranges[blockIdx.x / tiles];
  const long long units = static_cast<long long>(range.queries) * row_units;
  source += static_cast<long long>(range.query_begin) * row_units;
  target += static_cast<long long>(range.key_begin) * row_units;
  const long long first = static_cast<long long>(blockIdx.x % tiles) * THREADS * UNITS + threadIdx.x;
#pragma unroll
  for (int i = 0; i < UNITS; i++) {
    const long long at = first + i * THREADS;
    if (at < units) target[at] = source[at];
  }
}

#define COPY_ROWS(NAME, UNIT)                                                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
      NAME(const UNIT* source, UNIT* target, const Range* ranges, int row_units, int tiles) {                        \
    copy_rows<UNIT>(source, target, ranges, row_units, tiles);                                                       \
  }

// By the bytes of a unit.
COPY_ROWS(copy_rows_16, uint4)
COPY_ROWS(copy_rows_4, unsigned)
COPY_ROWS(copy_rows_2, unsigned short)
