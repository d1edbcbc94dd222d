// Atomic operations on global memory (PTX: atom).
#pragma once

namespace ptx {

// The value before. Of atomicAdd the compiler makes one operation a warp, whose result it waits for at once.
__device__ __forceinline__ int fetch_and_increment(int* counter) {
  int value;
  asm volatile("atom.global.add.s32 %0, [%1], 1;" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

}  // namespace ptx
