// Modules, kernels and their launch.
#include "device.h"

#include <cstring>
#include <vector>

namespace {

constexpr size_t kMostParameterBytes = 4096;  // what every driver takes
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
    return toNumber(env_, function);
  });
}

void Device::ReserveShared(CUfunction function, int bytes) {
  const CUresult result = driver().cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes);
  if (result != CUDA_SUCCESS) Fail(result, "reserving " + std::to_string(bytes) + " bytes of shared memory");
}

void Device::AllowShared(Info info) {
  Run([&](const Driver&) { ReserveShared(toHandle<CUfunction>(info[0]), info[1].As<Napi::Number>().Int32Value()); });
}

// Where the parameters of a kernel begin, counted from the first: all that lie in so many bytes. To ask for one that there is not
// would be an error to the tools that watch the driver.
const std::vector<size_t>& Device::Parameters(CUfunction function, size_t bytes) {
  const auto [found, isNew] = parameters_.try_emplace(function);
  std::vector<size_t>& offsets = found->second;
  size_t first = 0, offset = 0, size = 0;
  for (size_t end = 0; isNew && end < bytes; end = offset - first + size) {
    if (driver().cuFuncGetParamInfo(function, offsets.size(), &offset, &size) != CUDA_SUCCESS) break;
    if (offsets.empty()) first = offset;
    offsets.push_back(offset - first);
  }
  return offsets;
}

void Device::Launch(Info info) {
  Run([&](const Driver& cuda) {
    const auto number = [&](size_t i) { return info[i].As<Napi::Number>().Uint32Value(); };
    const CUfunction function = toHandle<CUfunction>(info[0]);
    const Napi::Uint8Array packed = info[6].As<Napi::Uint8Array>();
    alignas(128) uint8_t bytes[kMostParameterBytes] = {};
    if (packed.ByteLength() > sizeof bytes) {
      throw DriverError("CUDA_ERROR_INVALID_VALUE", "launching with " + std::to_string(packed.ByteLength()) + " bytes of parameters");
    }
    std::memcpy(bytes, packed.Data(), packed.ByteLength());
    // One by one: given as a whole, the driver would not see to the alignment of the first.
    std::vector<void*> parameters;
    for (size_t offset : Parameters(function, packed.ByteLength())) parameters.push_back(bytes + offset);
    const CUresult result = cuda.cuLaunchKernel(function, number(1), number(2), number(3), number(4), 1, 1, number(5),
                                                current_, parameters.data(), nullptr);
    if (result != CUDA_SUCCESS) Fail(result, "launching " + info[7].As<Napi::String>().Utf8Value());
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
