// Pieces of packed sequences, and where their keys lie.
#pragma once

// A piece of one sequence's queries, with all that a kernel has to know of it. The host lists them: route/ranges.ts.
struct alignas(16) Range {
  int query_begin;      // first query token of the packed batch
  int queries;          // of this piece
  int key_begin;        // first key token of the sequence
  int keys;             // of the whole sequence
  int first_position;   // position t of the first query among the keys; negative: before the first key
  int blocks;           // that the piece's queries can see
  int first_block;      // sum of `blocks` over the ranges before
  int first_key_block;  // the sequence's first block, as the centroids are numbered
};

// Keys of a paged cache: page `table[begin + p / size]` of `size` rows holds row p of the sequence whose table begins
// at `begin`. Without a table (null) rows lie one after the other, from row `begin` on. Blocks of keys have the same
// form.
struct Pages {
  const int* table;
  int size;

  __device__ __forceinline__ long long row(int begin, int p) const {
    if (table == nullptr) return static_cast<long long>(begin) + p;
    return static_cast<long long>(table[begin + p / size]) * size + p % size;
  }
};

// The block of position t, −1 before the first key.
__device__ __forceinline__ int own_block(int position, int block_size) {
  return position < 0 ? -1 : position / block_size;
}

// Of a ≥ 0; a + b may be beyond the integers.
__device__ __forceinline__ int ceil_div(int a, int b) { return a / b + (a % b != 0); }

// The sequence of a token (or block): the last one that begins at or before it. begins: ascending, one a sequence.
__device__ __forceinline__ int sequence_of(const int* begins, int sequences, int token) {
  int first = 0, last = sequences - 1;
  while (first < last) {
    const int middle = (first + last + 1) / 2;
    if (begins[middle] <= token) first = middle;
    else last = middle - 1;
  }
  return first;
}
