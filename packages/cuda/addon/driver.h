// The part of the CUDA driver API that the addon uses, declared here so that it builds without a CUDA toolkit, and found
// in libcuda.so.1 at run time. Names and values are those of NVIDIA's cuda.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = struct CUctx_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
using CUgraph = struct CUgraph_st*;
using CUgraphExec = struct CUgraphExec_st*;
using CUhostFn = void (*)(void*);

struct alignas(64) CUtensorMap {
  uint64_t opaque[16];
};

enum CUresult : int {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_OUT_OF_MEMORY = 2,
  CUDA_ERROR_NOT_SUPPORTED = 801,
  CUDA_ERROR_ECC_UNCORRECTABLE = 214,
  CUDA_ERROR_NVLINK_UNCORRECTABLE = 220,
  CUDA_ERROR_CONTAINED = 226,
  CUDA_ERROR_NOT_READY = 600,
  CUDA_ERROR_ILLEGAL_ADDRESS = 700,
  CUDA_ERROR_LAUNCH_TIMEOUT = 702,
  CUDA_ERROR_CONTEXT_IS_DESTROYED = 709,
  CUDA_ERROR_ASSERT = 710,
  CUDA_ERROR_HARDWARE_STACK_ERROR = 714,
  CUDA_ERROR_ILLEGAL_INSTRUCTION = 715,
  CUDA_ERROR_MISALIGNED_ADDRESS = 716,
  CUDA_ERROR_INVALID_ADDRESS_SPACE = 717,
  CUDA_ERROR_INVALID_PC = 718,
  CUDA_ERROR_LAUNCH_FAILED = 719,
  CUDA_ERROR_TENSOR_MEMORY_LEAK = 721,
  CUDA_ERROR_UNKNOWN = 999,
};

constexpr int CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16;
constexpr int CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38;
constexpr int CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75;
constexpr int CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76;
constexpr int CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97;
constexpr int CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
constexpr unsigned CU_STREAM_NON_BLOCKING = 1;
constexpr int CU_STREAM_CAPTURE_MODE_RELAXED = 2;
constexpr unsigned CU_EVENT_DEFAULT = 0;
constexpr unsigned CU_EVENT_DISABLE_TIMING = 2;
constexpr unsigned CU_EVENT_BLOCKING_SYNC_DISABLE_TIMING = 1 | 2;
constexpr int CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2;

// name in the table, exported symbol, parameters
#define MOBA_DRIVER_FUNCTIONS(X)                                                                                     \
  X(cuInit, cuInit, (unsigned))                                                                                      \
  X(cuDriverGetVersion, cuDriverGetVersion, (int*))                                                                  \
  X(cuGetErrorName, cuGetErrorName, (CUresult, const char**))                                                        \
  X(cuGetErrorString, cuGetErrorString, (CUresult, const char**))                                                    \
  X(cuDeviceGetCount, cuDeviceGetCount, (int*))                                                                      \
  X(cuDeviceGet, cuDeviceGet, (CUdevice*, int))                                                                      \
  X(cuDeviceGetName, cuDeviceGetName, (char*, int, CUdevice))                                                        \
  X(cuDeviceGetAttribute, cuDeviceGetAttribute, (int*, int, CUdevice))                                               \
  X(cuDeviceTotalMem, cuDeviceTotalMem_v2, (size_t*, CUdevice))                                                      \
  X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (CUcontext*, CUdevice))                                      \
  X(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, (CUdevice))                                             \
  X(cuDevicePrimaryCtxReset, cuDevicePrimaryCtxReset_v2, (CUdevice))                                                 \
  X(cuDevicePrimaryCtxGetState, cuDevicePrimaryCtxGetState, (CUdevice, unsigned*, int*))                             \
  X(cuCtxSetCurrent, cuCtxSetCurrent, (CUcontext))                                                                   \
  X(cuMemAlloc, cuMemAlloc_v2, (CUdeviceptr*, size_t))                                                               \
  X(cuMemFree, cuMemFree_v2, (CUdeviceptr))                                                                          \
  X(cuMemGetInfo, cuMemGetInfo_v2, (size_t*, size_t*))                                                               \
  X(cuMemHostAlloc, cuMemHostAlloc, (void**, size_t, unsigned))                                                      \
  X(cuMemFreeHost, cuMemFreeHost, (void*))                                                                           \
  X(cuMemsetD8Async, cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))                                \
  X(cuMemcpyHtoD, cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t))                                               \
  X(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void*, size_t, CUstream))                           \
  X(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, (void*, CUdeviceptr, size_t, CUstream))                                 \
  X(cuMemcpyDtoDAsync, cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                           \
  X(cuStreamCreate, cuStreamCreate, (CUstream*, unsigned))                                                           \
  X(cuStreamCreateWithPriority, cuStreamCreateWithPriority, (CUstream*, unsigned, int))                              \
  X(cuStreamWaitEvent, cuStreamWaitEvent, (CUstream, CUevent, unsigned))                                             \
  X(cuStreamDestroy, cuStreamDestroy_v2, (CUstream))                                                                 \
  X(cuStreamSynchronize, cuStreamSynchronize, (CUstream))                                                            \
  X(cuLaunchHostFunc, cuLaunchHostFunc, (CUstream, CUhostFn, void*))                                                 \
  X(cuEventCreate, cuEventCreate, (CUevent*, unsigned))                                                              \
  X(cuEventDestroy, cuEventDestroy_v2, (CUevent))                                                                    \
  X(cuEventRecord, cuEventRecord, (CUevent, CUstream))                                                               \
  X(cuEventQuery, cuEventQuery, (CUevent))                                                                           \
  X(cuEventSynchronize, cuEventSynchronize, (CUevent))                                                               \
  X(cuEventElapsedTime, cuEventElapsedTime, (float*, CUevent, CUevent))                                              \
  X(cuModuleLoadData, cuModuleLoadData, (CUmodule*, const void*))                                                    \
  X(cuModuleUnload, cuModuleUnload, (CUmodule))                                                                      \
  X(cuModuleGetFunction, cuModuleGetFunction, (CUfunction*, CUmodule, const char*))                                  \
  X(cuFuncSetAttribute, cuFuncSetAttribute, (CUfunction, int, int))                                                  \
  X(cuLaunchKernel, cuLaunchKernel,                                                                                  \
    (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**))    \
  X(cuFuncGetParamInfo, cuFuncGetParamInfo, (CUfunction, size_t, size_t*, size_t*))                                   \
  X(cuTensorMapEncodeTiled, cuTensorMapEncodeTiled,                                                                  \
    (CUtensorMap*, int, uint32_t, void*, const uint64_t*, const uint64_t*, const uint32_t*, const uint32_t*, int,    \
     int, int, int))                                                                                                 \
  X(cuStreamBeginCapture, cuStreamBeginCapture_v2, (CUstream, int))                                                  \
  X(cuStreamEndCapture, cuStreamEndCapture, (CUstream, CUgraph*))                                                    \
  X(cuGraphInstantiate, cuGraphInstantiateWithFlags, (CUgraphExec*, CUgraph, unsigned long long))                    \
  X(cuGraphLaunch, cuGraphLaunch, (CUgraphExec, CUstream))                                                           \
  X(cuGraphDestroy, cuGraphDestroy, (CUgraph))                                                                       \
  X(cuGraphExecDestroy, cuGraphExecDestroy, (CUgraphExec))

// The driver's functions. One that this driver lacks is a function that says so.
struct Driver {
#define MOBA_DECLARE(name, symbol, parameters) CUresult(*name) parameters = nullptr;
  MOBA_DRIVER_FUNCTIONS(MOBA_DECLARE)
#undef MOBA_DECLARE
};

// The driver of this process, loaded and initialized on first use; throws DriverError when there is none.
const Driver& driver();

// What failed, in the driver's words.
class DriverError : public std::runtime_error {
 public:
  DriverError(std::string cuda_name, const std::string& message)
      : std::runtime_error(message), cuda_name(std::move(cuda_name)) {}
  // "CUDA_ERROR_…"
  const std::string cuda_name;
};

// The error of a failed call; `doing` says what for.
DriverError driverError(CUresult result, const std::string& doing);

// Whether the error leaves the context unusable: everything in it is lost.
bool isSticky(CUresult result);
