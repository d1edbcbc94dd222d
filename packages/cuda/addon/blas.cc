#include "blas.h"

#include <dlfcn.h>

std::unique_ptr<Blas> Blas::open(const std::string& library) {
  void* loaded = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (loaded == nullptr) return nullptr;
  lt::Functions functions;
  bool complete = true;
#define MOBA_LOAD(name, result, parameters)                                                      \
  functions.name = reinterpret_cast<decltype(functions.name)>(dlsym(loaded, #name));             \
  complete = complete && functions.name != nullptr;
  MOBA_CUBLASLT_FUNCTIONS(MOBA_LOAD)
#undef MOBA_LOAD
  lt::Handle handle = nullptr;
  // A library that is newer than the driver is refused here.
  if (!complete || functions.cublasLtCreate(&handle) != lt::CUBLAS_STATUS_SUCCESS) {
    dlclose(loaded);
    return nullptr;
  }
  return std::unique_ptr<Blas>(new Blas(functions, handle));
}

Blas::~Blas() {
  for (const auto& product : products_) destroy(*product);
  functions_.cublasLtDestroy(handle_);
}

// cuBLASLt has matrices by columns: what is A · B by rows is Bᵀ · Aᵀ to it, of matrices that are all transposed already.
Product* Blas::plan(const ProductShape& shape, size_t mostWorkspaceBytes) {
  const auto [rows, columns, inner, transposeA, transposeB, type, outType] = shape;
  auto product = std::make_unique<Product>();
  const auto layout = [&](lt::MatrixLayout* created, int of, uint64_t height, uint64_t width) {
    return functions_.cublasLtMatrixLayoutCreate(created, of, height, width, static_cast<int64_t>(height)) ==
           lt::CUBLAS_STATUS_SUCCESS;
  };
  const auto transpose = [&](int which, bool transposed) {
    const int32_t operation = transposed ? lt::CUBLAS_OP_T : lt::CUBLAS_OP_N;
    return functions_.cublasLtMatmulDescSetAttribute(product->operation, which, &operation, sizeof operation) ==
           lt::CUBLAS_STATUS_SUCCESS;
  };
  const bool planned =
      functions_.cublasLtMatmulDescCreate(&product->operation, lt::CUBLAS_COMPUTE_32F, lt::CUDA_R_32F) ==
          lt::CUBLAS_STATUS_SUCCESS &&
      transpose(lt::CUBLASLT_MATMUL_DESC_TRANSA, transposeB) && transpose(lt::CUBLASLT_MATMUL_DESC_TRANSB, transposeA) &&
      (transposeB ? layout(&product->b, type, inner, columns) : layout(&product->b, type, columns, inner)) &&
      (transposeA ? layout(&product->a, type, rows, inner) : layout(&product->a, type, inner, rows)) &&
      layout(&product->out, outType, columns, rows) && choose(*product, mostWorkspaceBytes);
  if (!planned) {
    destroy(*product);
    return nullptr;
  }
  products_.push_back(std::move(product));
  return products_.back().get();
}

// The library's first choice for the shape, among algorithms that add parts of a sum in a fixed order and in float32: the same shape
// gives the same bits every time.
bool Blas::choose(Product& product, size_t mostWorkspaceBytes) {
  lt::MatmulPreference preference = nullptr;
  if (functions_.cublasLtMatmulPreferenceCreate(&preference) != lt::CUBLAS_STATUS_SUCCESS) return false;
  const uint64_t bytes = mostWorkspaceBytes;
  const uint32_t reduction = lt::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  const auto prefer = [&](int attribute, const void* value, size_t size) {
    return functions_.cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, size) ==
           lt::CUBLAS_STATUS_SUCCESS;
  };
  lt::MatmulHeuristicResult found = {};
  int count = 0;
  const bool chosen =
      prefer(lt::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes) &&
      prefer(lt::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction) &&
      functions_.cublasLtMatmulAlgoGetHeuristic(handle_, product.operation, product.b, product.a, product.out,
                                                product.out, preference, 1, &found, &count) ==
          lt::CUBLAS_STATUS_SUCCESS &&
      count == 1 && found.state == lt::CUBLAS_STATUS_SUCCESS;
  functions_.cublasLtMatmulPreferenceDestroy(preference);
  product.algorithm = found.algo;
  product.workspaceBytes = found.workspaceSize;
  return chosen;
}

bool Blas::run(const Product& product, CUdeviceptr a, CUdeviceptr b, CUdeviceptr addend, CUdeviceptr out,
               CUdeviceptr workspace, CUstream stream) {
  const float alpha = 1.0f, beta = addend == 0 ? 0.0f : 1.0f;
  const auto at = [](CUdeviceptr address) { return reinterpret_cast<void*>(address); };
  return functions_.cublasLtMatmul(handle_, product.operation, &alpha, at(b), product.b, at(a), product.a, &beta,
                                   at(addend == 0 ? out : addend), product.out, at(out), product.out,
                                   &product.algorithm, at(workspace), product.workspaceBytes,
                                   stream) == lt::CUBLAS_STATUS_SUCCESS;
}

void Blas::destroy(const Product& product) {
  for (lt::MatrixLayout layout : {product.a, product.b, product.out}) {
    if (layout != nullptr) functions_.cublasLtMatrixLayoutDestroy(layout);
  }
  if (product.operation != nullptr) functions_.cublasLtMatmulDescDestroy(product.operation);
}
