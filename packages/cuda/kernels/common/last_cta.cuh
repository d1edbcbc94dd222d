// Work that CTAs share, finished by the one that comes last: in a fixed order, so results do not depend on which it is.
#pragma once

// Whether this CTA is the last of `ctas` to come here. `arrived` is zero before. What the others wrote before they
// came can then be read, but not through pointers that are `const __restrict__`. Every thread of the CTA calls it.
__device__ __forceinline__ bool last_to_arrive(unsigned* arrived, unsigned ctas) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(arrived, 1u) == ctas - 1;
    __threadfence();
  }
  __syncthreads();
  return last;
}
