// The greater of two, NaN if one is a NaN (PTX: max.NaN); CUDA's fmaxf drops them.
#pragma once

namespace ptx {

__device__ __forceinline__ float max_nan(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

}  // namespace ptx
