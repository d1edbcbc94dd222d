// Warpgroup matrix products of Hopper (PTX: wgmma), m64nNk16, float32 accumulators in registers.
// Thread t of a warpgroup holds rows 16·(t/32) + (t%32)/4 and that + 8; acc[4j … 4j+3] are columns 8j + 2(t%4) + {0, 1} of the
// first row, then of the second.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace ptx {

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// Descriptor of a shared-memory tile with rows of 128 bytes in 128-byte swizzle, eight rows 1024 bytes apart: its rows
// are those of the matrix (K-major).
__device__ __forceinline__ uint64_t descriptor_k_major(uint32_t address) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

// The same tile read as its transpose (MN-major); `stride` bytes from one 64-column half to the next.
__device__ __forceinline__ uint64_t descriptor_mn_major(uint32_t address, uint32_t stride) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(stride >> 4) << 16 | 64ull << 32 | 1ull << 62;
}

// Keeps the compiler from using results of products before the wait that comes before this.
template <int N>
__device__ __forceinline__ void wgmma_results(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// What `bytes` further on adds to a descriptor.
__device__ __forceinline__ constexpr uint64_t descriptor_offset(int bytes) { return bytes >> 4; }

// Stores four 8×8 matrices of 2-byte elements transposed (PTX: stmatrix): a lane gives of each the elements 2(t%4) + {0, 1} of
// row t/4; lanes 8i … 8i+7 the shared addresses of the columns of matrix i.
__device__ __forceinline__ void store_matrices_transposed(uint32_t shared, const uint32_t* words) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(words[0]),
               "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

#define MOBA_4(C, i) C(d[i]), C(d[i + 1]), C(d[i + 2]), C(d[i + 3])
#define MOBA_16(C, i) MOBA_4(C, i), MOBA_4(C, i + 4), MOBA_4(C, i + 8), MOBA_4(C, i + 12)
#define MOBA_32(C) MOBA_16(C, 0), MOBA_16(C, 16)
#define MOBA_64(C) MOBA_16(C, 0), MOBA_16(C, 16), MOBA_16(C, 32), MOBA_16(C, 48)
#define MOBA_SET "=f"
#define MOBA_ADD "+f"
#define MOBA_REGISTERS_32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define MOBA_REGISTERS_64 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// Products of one k-step. `first`: d = A·B, which defines the accumulators (were they inputs, the compiler would have to set
// them while other products are under way); otherwise d += A·B.
#define MOBA_WGMMA_STEP(SUFFIX, CONSTRAINT, ACCUMULATE, TYPE, NAME, N, COUNT, A0, A1, A2, A3, B)                        \
  /* A and B in shared memory, K-major both: A·Bᵀ */                                                                   \
  __device__ __forceinline__ void wgmma_abt_##SUFFIX(float(&d)[COUNT], uint64_t a, uint64_t b, TYPE) {                 \
    asm volatile("{.reg .pred p; setp.ne.b32 p, " ACCUMULATE ", 0;\n"                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" MOBA_REGISTERS_##COUNT "}, %" A0  \
                 ", %" A1 ", p, 1, 1, 0, 0;}\n"                                                                        \
                 : MOBA_##COUNT(CONSTRAINT)                                                                            \
                 : "l"(a), "l"(b));                                                                                    \
  }                                                                                                                    \
  /* A in registers, as packed pairs of an accumulator's layout, B in shared memory, MN-major: A·B */                  \
  __device__ __forceinline__ void wgmma_ab_##SUFFIX(float(&d)[COUNT], const uint32_t* a, uint64_t b, TYPE) {           \
    asm volatile("{.reg .pred p; setp.ne.b32 p, " ACCUMULATE ", 0;\n"                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" MOBA_REGISTERS_##COUNT "}, {%" A0 \
                 ",%" A1 ",%" A2 ",%" A3 "}, %" B ", p, 1, 1, 1;}\n"                                                   \
                 : MOBA_##COUNT(CONSTRAINT)                                                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                \
  }                                                                                                                    \
  /* A in shared memory, K-major, B in shared memory, MN-major: A·B */                                                 \
  __device__ __forceinline__ void wgmma_ab_##SUFFIX(float(&d)[COUNT], uint64_t a, uint64_t b, TYPE) {                  \
    asm volatile("{.reg .pred p; setp.ne.b32 p, " ACCUMULATE ", 0;\n"                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" MOBA_REGISTERS_##COUNT "}, %" A0  \
                 ", %" A1 ", p, 1, 1, 0, 1;}\n"                                                                        \
                 : MOBA_##COUNT(CONSTRAINT)                                                                            \
                 : "l"(a), "l"(b));                                                                                    \
  }
// The same with A in registers, as d += A·B, or d = A·B where `more` is zero: for accumulators that outlive a loop.
#define MOBA_WGMMA_CHOICE(TYPE, NAME, N, COUNT, A0, A1, A2, A3, B, MORE)                                               \
  __device__ __forceinline__ void wgmma_ab_more_if(int more, float(&d)[COUNT], const uint32_t* a, uint64_t b, TYPE) {  \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" MORE ", 0;\n"                                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" MOBA_REGISTERS_##COUNT "}, {%" A0 \
                 ",%" A1 ",%" A2 ",%" A3 "}, %" B ", p, 1, 1, 1;}\n"                                                   \
                 : MOBA_##COUNT("+f")                                                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more));                                     \
  }
#define MOBA_WGMMA(TYPE, NAME)                                                                                         \
  MOBA_WGMMA_STEP(first, MOBA_SET, "0", TYPE, NAME, 64, 32, "32", "33", "34", "35", "36")                              \
  MOBA_WGMMA_STEP(more, MOBA_ADD, "1", TYPE, NAME, 64, 32, "32", "33", "34", "35", "36")                               \
  MOBA_WGMMA_STEP(first, MOBA_SET, "0", TYPE, NAME, 128, 64, "64", "65", "66", "67", "68")                             \
  MOBA_WGMMA_STEP(more, MOBA_ADD, "1", TYPE, NAME, 128, 64, "64", "65", "66", "67", "68")                             \
  MOBA_WGMMA_CHOICE(TYPE, NAME, 64, 32, "32", "33", "34", "35", "36", "37")                                            \
  MOBA_WGMMA_CHOICE(TYPE, NAME, 128, 64, "64", "65", "66", "67", "68", "69")

MOBA_WGMMA(__nv_bfloat16, "bf16")
MOBA_WGMMA(__half, "f16")

#undef MOBA_WGMMA
#undef MOBA_WGMMA_STEP
#undef MOBA_WGMMA_CHOICE
#undef MOBA_REGISTERS_32
#undef MOBA_REGISTERS_64
#undef MOBA_32
#undef MOBA_64
#undef MOBA_16
#undef MOBA_4
#undef MOBA_SET
#undef MOBA_ADD

}  // namespace ptx
