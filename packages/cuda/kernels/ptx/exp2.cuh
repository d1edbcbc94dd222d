// 2^x to 2 units in the last place, results below 2^-126 are zero (PTX: ex2.approx).
#pragma once

namespace ptx {

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace ptx
