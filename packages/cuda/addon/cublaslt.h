// The part of cuBLASLt that the addon uses, declared here so that it builds without a CUDA toolkit, and found in libcublasLt at
// run time. Names and values are those of NVIDIA's cublasLt.h; test/cublaslt_header.cc compares them where that is installed.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace lt {

using Handle = struct Context*;
using MatmulDesc = struct MatmulDescOpaque*;
using MatrixLayout = struct MatrixLayoutOpaque*;
using MatmulPreference = struct MatmulPreferenceOpaque*;

struct MatmulAlgo {
  uint64_t data[8];
};

struct MatmulHeuristicResult {
  MatmulAlgo algo;
  size_t workspaceSize;
  int state;
  float wavesCount;
  int reserved[4];
};

constexpr int CUBLAS_STATUS_SUCCESS = 0;
constexpr int CUDA_R_32F = 0;
constexpr int CUDA_R_16F = 2;
constexpr int CUDA_R_16BF = 14;
constexpr int CUBLAS_COMPUTE_32F = 68;
constexpr int32_t CUBLAS_OP_N = 0;
constexpr int32_t CUBLAS_OP_T = 1;
constexpr int CUBLASLT_MATMUL_DESC_TRANSA = 3;
constexpr int CUBLASLT_MATMUL_DESC_TRANSB = 4;
constexpr int CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1;
constexpr int CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3;
constexpr uint32_t CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2;

// name, result, parameters
#define MOBA_CUBLASLT_FUNCTIONS(X)                                                                                    \
  X(cublasLtGetVersion, size_t, (void))                                                                               \
  X(cublasLtCreate, int, (Handle*))                                                                                   \
  X(cublasLtDestroy, int, (Handle))                                                                                   \
  X(cublasLtMatmulDescCreate, int, (MatmulDesc*, int, int))                                                           \
  X(cublasLtMatmulDescDestroy, int, (MatmulDesc))                                                                     \
  X(cublasLtMatmulDescSetAttribute, int, (MatmulDesc, int, const void*, size_t))                                      \
  X(cublasLtMatrixLayoutCreate, int, (MatrixLayout*, int, uint64_t, uint64_t, int64_t))                               \
  X(cublasLtMatrixLayoutDestroy, int, (MatrixLayout))                                                                 \
  X(cublasLtMatmulPreferenceCreate, int, (MatmulPreference*))                                                         \
  X(cublasLtMatmulPreferenceDestroy, int, (MatmulPreference))                                                         \
  X(cublasLtMatmulPreferenceSetAttribute, int, (MatmulPreference, int, const void*, size_t))                          \
  X(cublasLtMatmulAlgoGetHeuristic, int,                                                                              \
    (Handle, MatmulDesc, MatrixLayout, MatrixLayout, MatrixLayout, MatrixLayout, MatmulPreference, int,               \
     MatmulHeuristicResult*, int*))                                                                                   \
  X(cublasLtMatmul, int,                                                                                              \
    (Handle, MatmulDesc, const void* alpha, const void* a, MatrixLayout, const void* b, MatrixLayout,                 \
     const void* beta, const void* c, MatrixLayout, void* d, MatrixLayout, const MatmulAlgo*, void* workspace,        \
     size_t workspaceBytes, CUstream_st*))

struct Functions {
#define MOBA_DECLARE(name, result, parameters) result(*name) parameters;
  MOBA_CUBLASLT_FUNCTIONS(MOBA_DECLARE)
#undef MOBA_DECLARE
};

}  // namespace lt
