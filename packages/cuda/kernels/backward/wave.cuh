// What a kernel for the plan of slot_backward.ts takes of a wave, as addWave there gives it.
#pragma once
#include <cstdint>

#include "common/range.cuh"

struct WaveArguments {
  const float2* terms;     // [H, T], see row_terms.cu
  const Range* ranges;
  const int* counts;       // lists, see invert.ts
  const int* starts;
  const int* entries;
  const int4* items;       // {chunk, begin, rows, piece}, in a region of most_items a segment
  const int* item_starts;  // [segments + 1]: items of the segments before
  int* ticket;             // zero
  void* partial;           // dq of slots; null: not wanted
  uint32_t* steps;         // of packed ones
  float* pieces;
  void* dk;  // [Tk, Hkv, d]; null: not wanted
  void* dv;
  int all_tokens, heads, group;  // T, H, H/Hkv
  int slots, chunks, chunk_keys, block_size;
  int first_kv_head, first_token, tokens;  // of the lists
  int range_count, columns, most_items, segments;
  int causal;
  float scale;  // of scores
};
