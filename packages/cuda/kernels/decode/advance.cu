// The ranges of a step of decoding with a paged cache, from the lengths of its sequences on the device: so that a
// captured graph, which cannot know them, can be replayed step after step.
#include "common/range.cuh"

constexpr int THREADS = 128;

// Each sequence gets `added` new tokens, which are its queries: lengths[s] grows by them. One of length −1 pauses: its
// queries come before all keys. ranges: [sequences].
// pages_per_sequence: the width of the page table. Grid: (sequences / THREADS).
extern "C" __global__ void __launch_bounds__(THREADS)
    advance(int* lengths, Range* ranges, int sequences, int added, int block_size, int pages_per_sequence) {
  const int sequence = blockIdx.x * THREADS + threadIdx.x;
  if (sequence >= sequences) return;
  const bool pauses = lengths[sequence] < 0;
  const int before = pauses ? -added : lengths[sequence], after = before + added;
  if (!pauses) lengths[sequence] = after;
  const int table = sequence * pages_per_sequence;
  ranges[sequence] = Range{sequence * added, added, table, after, before, ceil_div(after, block_size), 0, table};
}
