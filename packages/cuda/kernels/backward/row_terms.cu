// What the gradients of attention take from each query's row: D = dOut·out and its log-sum-exp in base 2.
#include "common/elements.cuh"
#include "common/softmax.cuh"
#include "common/warp.cuh"

constexpr int WARPS = 4;
constexpr int ROW_LANES = 8;  // along a row

// d_out, out: [T, H, d], d a multiple of 8. lse: [T, H], natural. terms: [H, T], {lse · log2(e), D}. A warp takes 32
// tokens of a head. Grid: (ceil(T / 128), H).
template <typename T>
__device__ __forceinline__ void row_terms(const T* d_out, const T* out, const float* lse, float2* terms, int tokens,
                                          int heads, int head_dim) {
  const int first = (blockIdx.x * WARPS + warp_id()) * WARP, head = blockIdx.y;
  if (first >= tokens) return;
  float product = 0;  // of token first + lane
#pragma unroll 4
  for (int i = 0; i < ROW_LANES; i++) {
    const int token = min(first + i * (WARP / ROW_LANES) + lane_id() / ROW_LANES, tokens - 1);
    const long long row = (static_cast<long long>(token) * heads + head) * head_dim;
    float sum = 0;
    for (int c = lane_id() % ROW_LANES * 8; c < head_dim; c += ROW_LANES * 8) {
      float x[8], y[8];
      unpack(x, load<T, 8>(d_out + row + c));
      unpack(y, load<T, 8>(out + row + c));
#pragma unroll
      for (int j = 0; j < 8; j++) sum += x[j] * y[j];
    }
    sum = warp_sum<ROW_LANES>(sum);
    // Lane 4 i + g wants the sum of group g.
    const float wanted = __shfl_sync(ALL_LANES, sum, lane_id() % (WARP / ROW_LANES) * ROW_LANES);
    if (lane_id() / (WARP / ROW_LANES) == i) product = wanted;
  }
  const int token = first + lane_id();
  if (token >= tokens) return;
  const float log_sum = lse[static_cast<long long>(token) * heads + head];
  terms[static_cast<long long>(head) * tokens + token] = make_float2(log_sum * LOG2_E, product);
}

#define ROW_TERMS(SUFFIX, T)                                                                                \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP) row_terms_##SUFFIX(                             \
      const T* d_out, const T* out, const float* lse, float2* terms, int tokens, int heads, int head_dim) { \
    row_terms<T>(d_out, out, lse, terms, tokens, heads, head_dim);                                          \
  }

ROW_TERMS(bf16, bf16)
ROW_TERMS(f16, f16)
