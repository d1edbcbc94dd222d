// Which sequence a block of keys is of.
#pragma once
#include "common/range.cuh"

// The range that block number `block` of all is of: the last one that begins at or before it.
__device__ __forceinline__ const Range& range_of_block(const Range* ranges, int count, int block) {
  int first = 0, last = count - 1;
  while (first < last) {
    const int middle = (first + last + 1) / 2;
    if (ranges[middle].first_block <= block) first = middle;
    else last = middle - 1;
  }
  return ranges[first];
}
