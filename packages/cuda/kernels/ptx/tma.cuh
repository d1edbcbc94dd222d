// The bulk tensor copy engine (PTX: cp.async.bulk.tensor), and what orders it with ordinary stores.
#pragma once
#include <cstdint>

namespace ptx {

// The 128 bytes that cuTensorMapEncodeTiled fills in.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

// Copies the box at (column, row) of a two-dimensional tensor to shared memory; its bytes arrive at the barrier.
__device__ __forceinline__ void tma_load(uint32_t target, const TensorMap* map, uint32_t barrier, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          target),
      "l"(map), "r"(barrier), "r"(column), "r"(row)
      : "memory");
}

// Orders this thread's stores to shared memory before reads by the copy engine and the tensor cores.
__device__ __forceinline__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace ptx
