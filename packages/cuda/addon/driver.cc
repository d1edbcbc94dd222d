#include "driver.h"

#include <dlfcn.h>

namespace {

// The last symbol that was missing when called, for the message.
thread_local const char* missing_symbol = nullptr;

#define MOBA_MISSING(name, symbol, parameters)                  \
  CUresult missing_##name parameters {                          \
    missing_symbol = #symbol;                                   \
    return CUDA_ERROR_NOT_SUPPORTED;                            \
  }
MOBA_DRIVER_FUNCTIONS(MOBA_MISSING)
#undef MOBA_MISSING

Driver load() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    throw DriverError("CUDA_ERROR_NO_DEVICE", std::string("no NVIDIA driver: libcuda.so.1 cannot be loaded (") +
                                                  (reason ? reason : "unknown reason") + ")");
  }
  Driver table;
#define MOBA_LOAD(name, symbol, parameters)                                         \
  table.name = reinterpret_cast<CUresult(*) parameters>(dlsym(library, #symbol));   \
  if (table.name == nullptr) table.name = missing_##name;
  MOBA_DRIVER_FUNCTIONS(MOBA_LOAD)
#undef MOBA_LOAD
  return table;
}

std::string nameOf(const Driver& table, CUresult result) {
  const char* name = nullptr;
  if (table.cuGetErrorName(result, &name) == CUDA_SUCCESS && name != nullptr) return name;
  return "CUDA_ERROR_" + std::to_string(result);
}

DriverError makeError(const Driver& table, CUresult result, const std::string& doing) {
  const std::string name = nameOf(table, result);
  std::string message = name;
  const char* description = nullptr;
  if (missing_symbol != nullptr) {
    message += std::string(" (this NVIDIA driver is too old: it has no ") + missing_symbol + ")";
    missing_symbol = nullptr;
  } else if (table.cuGetErrorString(result, &description) == CUDA_SUCCESS && description != nullptr) {
    message += std::string(" (") + description + ")";
  }
  return DriverError(name, message + ": " + doing);
}

Driver start() {
  const Driver table = load();
  const CUresult result = table.cuInit(0);
  if (result != CUDA_SUCCESS) throw makeError(table, result, "starting the NVIDIA driver");
  return table;
}

}  // namespace

const Driver& driver() {
  static const Driver table = start();
  return table;
}

DriverError driverError(CUresult result, const std::string& doing) {
  const char* end = isSticky(result) ? "; the driver takes no more work of this process: start a new one" : "";
  return makeError(driver(), result, doing + end);
}

bool isSticky(CUresult result) {
  switch (result) {
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_CONTAINED:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_TENSOR_MEMORY_LEAK:
    case CUDA_ERROR_UNKNOWN:
      return true;
    default:
      return false;
  }
}
