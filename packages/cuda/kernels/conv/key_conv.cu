// Key convolution (arXiv 2511.11571, section 3 and appendix): depthwise, causal, residual, each sequence by itself:
// k'_t = k_t + SiLU(Σ_{l=0}^{W−1} w_l ⊙ k_{t−l}). Before a sequence lies its history, or zeros.
//
// A key token is a row of Hkv·d channels. A thread takes a packet of channels of 4 tokens in a row: what their sums
// share is in the L1 cache, so each key comes from memory about once.
#include "common/elements.cuh"
#include "common/range.cuh"

constexpr int THREADS = 128;
constexpr int COLUMNS = 16;  // packets of channels
constexpr int TOKENS = 4;

// Keys of one packet of channels, and the history before them.
template <typename T, int V>
struct Keys {
  const T* keys;     // [T, channels]
  const T* history;  // [batch, W − 1, channels], oldest first; null: zeros
  int channels;
  int width;

  // The key `lag` before the one at place `place` of a sequence that begins at token `begin`.
  __device__ __forceinline__ Packet<T, V> before(int sequence, int begin, int place, int lag) const {
    if (place >= lag) return load<T, V>(keys + static_cast<long long>(begin + place - lag) * channels);
    if (history == nullptr) return Packet<T, V>{};
    const long long row = static_cast<long long>(sequence) * (width - 1) + width - 1 + place - lag;
    return load<T, V>(history + row * channels);
  }
};

// keys, out: [T, channels]. weights: [W, channels]. cu_seqlens: [batch + 1]. Grid: (T / 32, packets / 16).
template <typename T, int V>
__device__ __forceinline__ void key_conv(const T* __restrict__ keys, const T* __restrict__ weights,
                                         const T* __restrict__ history, const int* cu_seqlens, int batch, T* out,
                                         int channels, int width) {
  const int channel = (blockIdx.y * COLUMNS + threadIdx.x % COLUMNS) * V;
  const int first = (blockIdx.x * (THREADS / COLUMNS) + threadIdx.x / COLUMNS) * TOKENS;
  const int tokens = cu_seqlens[batch];
  if (channel >= channels || first >= tokens) return;
  const Keys<T, V> source{keys + channel, history == nullptr ? nullptr : history + channel, channels, width};

  int sequence[TOKENS], begin[TOKENS];
#pragma unroll
  for (int i = 0; i < TOKENS; i++) {
    sequence[i] = i == 0 ? sequence_of(cu_seqlens, batch, first) : sequence[i - 1];
    while (sequence[i] + 1 < batch && cu_seqlens[sequence[i] + 1] <= first + i) sequence[i]++;
    begin[i] = cu_seqlens[sequence[i]];
  }
  const int count = min(TOKENS, tokens - first);
  float sum[TOKENS][V] = {};
  for (int lag = 0; lag < width; lag++) {
    float weight[V];
    unpack(weight, load<T, V>(weights + static_cast<long long>(lag) * channels + channel));
#pragma unroll
    for (int i = 0; i < TOKENS; i++) {
      if (i >= count) break;
      float x[V];
      unpack(x, source.before(sequence[i], begin[i], first + i - begin[i], lag));
#pragma unroll
      for (int c = 0; c < V; c++) sum[i][c] += weight[c] * x[c];
    }
  }
#pragma unroll
  for (int i = 0; i < TOKENS; i++) {
    if (i >= count) break;
    const long long at = static_cast<long long>(first + i) * channels + channel;
    float x[V];
    unpack(x, load<T, V>(keys + at));
#pragma unroll
    for (int c = 0; c < V; c++) x[c] += sum[i][c] / (1.0f + expf(-sum[i][c]));
    store(out + at, x);
  }
}

// The history for the tokens after these: each sequence's last W − 1 keys. next: [batch, W − 1, channels].
// Grid: (batch · (W − 1) · packets / THREADS).
template <typename T, int V>
__device__ __forceinline__ void key_conv_history(const T* __restrict__ keys, const T* __restrict__ history,
                                                 const int* cu_seqlens, int batch, T* next, int channels, int width) {
  const int packets = channels / V;
  const long long item = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
  const long long row = item / packets;
  if (row >= static_cast<long long>(batch) * (width - 1)) return;
  const int channel = item % packets * V;
  const int sequence = row / (width - 1), begin = cu_seqlens[sequence], length = cu_seqlens[sequence + 1] - begin;
  const Keys<T, V> source{keys + channel, history == nullptr ? nullptr : history + channel, channels, width};
  float x[V];
  unpack(x, source.before(sequence, begin, length, width - 1 - static_cast<int>(row % (width - 1))));
  store(next + row * channels + channel, x);
}

#define KEY_CONV(SUFFIX, T, V)                                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
      key_conv_##SUFFIX(const T* keys, const T* weights, const T* history, const int* cu_seqlens, int batch, T* out, \
                        int channels, int width) {                                                                   \
    key_conv<T, V>(keys, weights, history, cu_seqlens, batch, out, channels, width);                                 \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
      key_conv_history_##SUFFIX(const T* keys, const T* history, const int* cu_seqlens, int batch, T* next,          \
                                int channels, int width) {                                                           \
    key_conv_history<T, V>(keys, history, cu_seqlens, batch, next, channels, width);                                 \
  }

// Rows of a multiple of 16 bytes, and any rows.
KEY_CONV(f32, f32, 4)
KEY_CONV(f16, f16, 8)
KEY_CONV(bf16, bf16, 8)
KEY_CONV(f32_scalar, f32, 1)
KEY_CONV(f16_scalar, f16, 1)
KEY_CONV(bf16_scalar, bf16, 1)
