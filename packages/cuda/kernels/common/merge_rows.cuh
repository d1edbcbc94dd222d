// A query's row from its partial outputs: out = Σ_s 2^(lse_s − L) · partial_s, L = log2 Σ_s 2^lse_s.
#pragma once
#include "common/elements.cuh"
#include "common/pairs.cuh"
#include "common/softmax.cuh"
#include "ptx/exp2.cuh"

// One 16-byte piece of a row of d elements of 2 bytes; the lanes of a quad take four pieces in a row, 4i … 4i + 3.
// `partial`: this lane's piece of slot 0; slots lie `stride` pieces apart, in accumulator order. Unused slots (index −1) are
// not read. Returns the piece in the order of columns and gives L.
template <typename T>
__device__ __forceinline__ uint4 merge_piece(const uint4* partial, int stride, const float* partial_lse, const int* indices,
                                             int slots, float& log2_sum) {
  constexpr int AT_ONCE = 8;  // loads on their way
  float max = -INFINITY;
  for (int slot = 0; slot < slots; slot++) {
    if (__ldg(indices + slot) >= 0) max = fmaxf(max, __ldg(partial_lse + slot));
  }
  const float shift = shift_of(max);
  float sum = 0, out[8] = {};
  for (int first = 0; first < slots; first += AT_ONCE) {
    Packet<T, 8> pieces[AT_ONCE];
    float weights[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      const int slot = first + u;
      const bool used = slot < slots && __ldg(indices + slot) >= 0;
      pieces[u].bits = used ? __ldg(partial + static_cast<long long>(slot) * stride) : make_uint4(0, 0, 0, 0);
      weights[u] = used ? ptx::exp2_approx(__ldg(partial_lse + slot) - shift) : 0.0f;
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      float x[8];
      unpack(x, pieces[u]);
      sum += weights[u];
#pragma unroll
      for (int c = 0; c < 8; c++) out[c] += weights[u] * x[c];
    }
  }
  log2_sum = log_sum(max, sum);
  const float factor = inverse_sum(sum);
  uint32_t words[4];
#pragma unroll
  for (int u = 0; u < 4; u++) words[u] = pack<T>(out[2 * u] * factor, out[2 * u + 1] * factor);
  transpose_quad(words);  // word u of lane l holds columns 8(4i + u) + 2l + {0, 1}
  return make_uint4(words[0], words[1], words[2], words[3]);
}
