// Shared memory by its 32-bit address.
#pragma once
#include <cstdint>

namespace ptx {

__device__ __forceinline__ int load_shared_4(uint32_t address) {
  int x;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  return x;
}

}  // namespace ptx
