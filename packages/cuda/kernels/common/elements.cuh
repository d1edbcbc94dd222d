// The element types of tensors, and moving them 16 bytes at a time.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

using f32 = float;
using f16 = __half;
using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(f32 x) { return x; }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

// Rounds to nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ f32 from_float<f32>(float x) {
  return x;
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

// Elements in 16 bytes.
template <typename T>
constexpr int PER_16_BYTES = 16 / sizeof(T);

// What `V` elements travel in: 16 bytes, or one element where rows are not aligned to more.
template <typename T, int V>
struct Packet {
  static_assert(V == PER_16_BYTES<T>, "16 bytes, or one element");
  uint4 bits;
};
template <typename T>
struct Packet<T, 1> {
  T bits;
};

template <typename T, int V>
__device__ __forceinline__ Packet<T, V> load(const T* source) {
  return *reinterpret_cast<const Packet<T, V>*>(source);
}

template <typename T>
__device__ __forceinline__ void unpack(float (&x)[1], Packet<T, 1> packet) {
  x[0] = to_float(packet.bits);
}
__device__ __forceinline__ void unpack(float (&x)[4], Packet<f32, 4> packet) {
  x[0] = __uint_as_float(packet.bits.x);
  x[1] = __uint_as_float(packet.bits.y);
  x[2] = __uint_as_float(packet.bits.z);
  x[3] = __uint_as_float(packet.bits.w);
}
__device__ __forceinline__ void unpack(float (&x)[8], Packet<f16, 8> packet) {
  const __half2* pairs = reinterpret_cast<const __half2*>(&packet.bits);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 pair = __half22float2(pairs[i]);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}
__device__ __forceinline__ void unpack(float (&x)[8], Packet<bf16, 8> packet) {
  const uint32_t pairs[4] = {packet.bits.x, packet.bits.y, packet.bits.z, packet.bits.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {  // bf16 is the upper half of a float32
    x[2 * i] = __uint_as_float(pairs[i] << 16);
    x[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
  }
}

template <typename T>
__device__ __forceinline__ void store(T* target, const float (&x)[1]) {
  *target = from_float<T>(x[0]);
}
__device__ __forceinline__ void store(f32* target, const float (&x)[4]) {
  *reinterpret_cast<float4*>(target) = make_float4(x[0], x[1], x[2], x[3]);
}
template <typename T>
__device__ __forceinline__ void store(T* target, const float (&x)[8]) {
  static_assert(sizeof(T) == 2, "8 elements of 2 bytes");
  T rounded[8];
#pragma unroll
  for (int i = 0; i < 8; i++) rounded[i] = from_float<T>(x[i]);
  uint4 bits;
  memcpy(&bits, rounded, sizeof bits);
  *reinterpret_cast<uint4*>(target) = bits;
}
