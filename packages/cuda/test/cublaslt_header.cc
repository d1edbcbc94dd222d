// Compares the addon's declarations of cuBLASLt with NVIDIA's; compiled only, where that header is installed.
#include <cublasLt.h>

#include "../addon/cublaslt.h"

#define SAME(name) static_assert(static_cast<int64_t>(lt::name) == static_cast<int64_t>(::name), #name)
SAME(CUBLAS_STATUS_SUCCESS);
SAME(CUDA_R_32F);
SAME(CUDA_R_16F);
SAME(CUDA_R_16BF);
SAME(CUBLAS_COMPUTE_32F);
SAME(CUBLAS_OP_N);
SAME(CUBLAS_OP_T);
SAME(CUBLASLT_MATMUL_DESC_TRANSA);
SAME(CUBLASLT_MATMUL_DESC_TRANSB);
SAME(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
SAME(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);

using Ours = lt::MatmulHeuristicResult;
using Theirs = cublasLtMatmulHeuristicResult_t;
static_assert(sizeof(Ours) == sizeof(Theirs));
static_assert(offsetof(Ours, algo) == offsetof(Theirs, algo));
static_assert(offsetof(Ours, workspaceSize) == offsetof(Theirs, workspaceSize));
static_assert(offsetof(Ours, state) == offsetof(Theirs, state));

// As many parameters of the same sizes, for every function.
template <typename... Ours, typename... Theirs>
constexpr bool same_sizes(size_t (*)(Ours...), size_t (*)(Theirs...)) {
  return ((sizeof(Ours) == sizeof(Theirs)) && ...);
}
template <typename... Ours, typename... Theirs>
constexpr bool same_sizes(int (*)(Ours...), cublasStatus_t (*)(Theirs...)) {
  return ((sizeof(Ours) == sizeof(Theirs)) && ...);
}
#define SAME_FUNCTION(name, result, parameters) \
  static_assert(same_sizes(decltype(lt::Functions::name){}, decltype (&::name){}), #name);
MOBA_CUBLASLT_FUNCTIONS(SAME_FUNCTION)
