// Matrix products by cuBLASLt, where it is installed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cublaslt.h"
#include "driver.h"

// Row-major matrices: out [rows, columns] = A · B, a is A [rows, inner] or its transpose, b is B [inner, columns] or its transpose.
struct ProductShape {
  uint64_t rows, columns, inner;
  bool transposeA, transposeB;
  int type;     // of a and b: CUDA_R_…
  int outType;
};

// A product and the algorithm that was chosen for it.
struct Product {
  lt::MatmulDesc operation = nullptr;
  lt::MatrixLayout a = nullptr, b = nullptr, out = nullptr;
  lt::MatmulAlgo algorithm;
  size_t workspaceBytes = 0;
};

class Blas {
 public:
  // The library of this name or path for the current context; null when there is none, or none that works here.
  static std::unique_ptr<Blas> open(const std::string& library);
  ~Blas();

  size_t version() const { return functions_.cublasLtGetVersion(); }
  // Null when the library has no algorithm for it. Lives as long as this.
  Product* plan(const ProductShape& shape, size_t mostWorkspaceBytes);
  // Enqueues a product, plus an addend like `out` unless that is 0; false when the library refuses.
  bool run(const Product& product, CUdeviceptr a, CUdeviceptr b, CUdeviceptr addend, CUdeviceptr out,
           CUdeviceptr workspace, CUstream stream);

 private:
  Blas(const lt::Functions& functions, lt::Handle handle) : functions_(functions), handle_(handle) {}
  bool choose(Product& product, size_t mostWorkspaceBytes);
  void destroy(const Product& product);

  const lt::Functions functions_;
  const lt::Handle handle_;
  std::vector<std::unique_ptr<Product>> products_;
};
