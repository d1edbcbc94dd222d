// Modules, kernels and their launch.
#include "device.h"

#include <cstring>
#include <vector>

namespace {

constexpr int kUnaskedSharedBytes = 48 << 10;

}  // namespace

Napi::Value Device::LoadModule(Info info) {
  return Run([&](const Driver& cuda) -> Napi::Value {
    const Napi::Uint8Array image = info[0].As<Napi::Uint8Array>();
    CUmodule module = nullptr;
    Check(cuda.cuModuleLoadData(&module, image.Data()), "loading kernels");
    modules_.insert(module);
    return toNumber(env_, module);
  });
}

Napi::Value Device::GetFunction(Info info) {
  return Run([&](const Driver& cuda) -> Napi::Value {
    const std::string name = info[1].As<Napi::String>();
    CUfunction function = nullptr;
    const CUresult result = cuda.cuModuleGetFunction(&function, toHandle<CUmodule>(info[0]), name.c_str());
    if (result != CUDA_SUCCESS) Fail(result, "looking up kernel " + name);
    // The driver's own limit is on shared memory of both kinds: what a kernel declares would count.
    ReserveShared(function, kUnaskedSharedBytes);
    kernels_.push_back(std::make_unique<Kernel>(Kernel{function, {}, name}));
    return toNumber(env_, kernels_.back().get());
  });
}

void Device::ReserveShared(CUfunction function, int bytes) {
  const CUresult result = driver().cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes);
  if (result != CUDA_SUCCESS) Fail(result, "reserving " + std::to_string(bytes) + " bytes of shared memory");
}

void Device::AllowShared(Info info) {
  Run([&](const Driver&) { ReserveShared(toHandle<Kernel*>(info[0])->function, info[1].As<Napi::Number>().Int32Value()); });
}

// Finds where the parameters begin that lie in so many bytes. To ask for one that there is not would be an error to the tools that
// watch the driver.
void Device::FindParameters(Kernel& kernel, size_t bytes) {
  size_t first = 0, offset = 0, size = 0;
  for (size_t end = 0; end < bytes; end = offset - first + size) {
    if (driver().cuFuncGetParamInfo(kernel.function, kernel.offsets.size(), &offset, &size) != CUDA_SUCCESS) break;
    if (kernel.offsets.empty()) first = offset;
    kernel.offsets.push_back(offset - first);
  }
}

Napi::Value Device::LaunchMemory(Info) { return launchMemory_.Value(); }

void Device::Launch(Info info) {
  Run([&](const Driver& cuda) {
    Kernel& kernel = *toHandle<Kernel*>(info[0]);
    const size_t bytes = toSize(info[1]);
    const LaunchBlock& block = *launchBlock_;
    if (bytes > sizeof block.parameters) {
      throw DriverError("CUDA_ERROR_INVALID_VALUE", "launching with " + std::to_string(bytes) + " bytes of parameters");
    }
    if (kernel.offsets.empty()) FindParameters(kernel, bytes);
    alignas(128) uint8_t packed[sizeof block.parameters];
    std::memcpy(packed, block.parameters, bytes);
    // One by one: given as a whole, the driver would not see to the alignment of the first.
    void* parameters[sizeof packed / sizeof(uint32_t)];
    for (size_t i = 0; i < kernel.offsets.size(); i++) parameters[i] = packed + kernel.offsets[i];
    const CUresult result = cuda.cuLaunchKernel(kernel.function, block.x, block.y, block.z, block.threads, 1, 1,
                                                block.sharedBytes, current_, parameters, nullptr);
    if (result != CUDA_SUCCESS) Fail(result, "launching " + kernel.name);
  });
}

Napi::Value Device::TensorMap(Info info) {
  return Run([&](const Driver& cuda) -> Napi::Value {
    constexpr uint32_t kMaxRank = 5;
    const Napi::Array dims = info[2].As<Napi::Array>();
    const Napi::Array strides = info[3].As<Napi::Array>();
    const Napi::Array box = info[4].As<Napi::Array>();
    const uint32_t rank = dims.Length();
    if (rank < 1 || rank > kMaxRank || strides.Length() != rank - 1 || box.Length() != rank) {
      throw DriverError("CUDA_ERROR_INVALID_VALUE", "describing a tensor of " + std::to_string(rank) + " dimensions");
    }
    uint64_t extents[kMaxRank], pitches[kMaxRank] = {};
    uint32_t boxes[kMaxRank], steps[kMaxRank];
    for (uint32_t i = 0; i < rank; i++) {
      extents[i] = toSize(dims[i]);
      if (i + 1 < rank) pitches[i] = toSize(strides[i]);
      boxes[i] = static_cast<uint32_t>(toSize(box[i]));
      steps[i] = 1;
    }
    CUtensorMap map;
    Check(cuda.cuTensorMapEncodeTiled(&map, info[1].As<Napi::Number>().Int32Value(), rank,
                                      reinterpret_cast<void*>(toPointer(info[0])), extents, pitches, boxes, steps,
                                      /* interleave */ 0, info[5].As<Napi::Number>().Int32Value(),
                                      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, /* zeros out of bounds */ 0),
          "describing a tensor to the copy engine");
    Napi::Uint8Array bytes = Napi::Uint8Array::New(env_, sizeof map);
    std::memcpy(bytes.Data(), &map, sizeof map);
    return bytes;
  });
}
