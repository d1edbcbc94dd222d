// Rotary position embedding (arXiv 2104.09864), halves paired: channels c and c + d/2 of each head turn by
// θ = position · base^(−2c/d). A thread takes one pair of channels of a token through its heads.
#include "common/elements.cuh"

constexpr int THREADS = 128;
constexpr float TWO_PI = 6.283185307179586f;

// x, out: [T, heads, 2·half]. frequencies: [half], turns a position, as the sum of a float and its rest. direction: 1 or −1.
// Grid: (T·half / THREADS).
template <typename T>
__device__ __forceinline__ void rope(const T* __restrict__ x, const int* positions, const float2* frequencies, T* out,
                                     int tokens, int heads, int half, float direction) {
  const long long item = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
  const long long token = item / half;
  if (token >= tokens) return;
  const int c = item % half;

  // Whole turns are taken off exactly, so that far positions keep their angle: position · frequency is turns + lost.
  const float position = direction * positions[token];
  const float2 frequency = frequencies[c];
  const float turns = position * frequency.x;
  const float lost = fmaf(position, frequency.x, -turns);
  float sin, cos;
  sincosf((turns - rintf(turns) + fmaf(position, frequency.y, lost)) * TWO_PI, &sin, &cos);

  long long at = token * heads * 2 * half + c;
  for (int head = 0; head < heads; head++, at += 2 * half) {
    const float low = to_float(x[at]), high = to_float(x[at + half]);
    out[at] = from_float<T>(low * cos - high * sin);
    out[at + half] = from_float<T>(low * sin + high * cos);
  }
}

#define ROPE(T)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                           \
      rope_##T(const T* x, const int* positions, const float2* frequencies, T* out, int tokens, int heads, int half, \
               float direction) {                                                                                 \
    rope<T>(x, positions, frequencies, out, tokens, heads, half, direction);                                      \
  }

ROPE(f32)
ROPE(f16)
ROPE(bf16)
