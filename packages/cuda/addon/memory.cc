// Device memory.
#include "device.h"

Napi::Value Device::Allocate(Info info) {
  return Run([&](const Driver& cuda) -> Napi::Value {
    const size_t bytes = toSize(info[0]);
    CUdeviceptr pointer = 0;
    const CUresult result = cuda.cuMemAlloc(&pointer, bytes);
    if (result == CUDA_ERROR_OUT_OF_MEMORY) return Napi::Number::New(env_, 0);
    if (result != CUDA_SUCCESS) Fail(result, "allocating " + std::to_string(bytes) + " bytes");
    allocations_.insert(pointer);
    return Napi::Number::New(env_, static_cast<double>(pointer));
  });
}

// Waits for all work that was enqueued; that of a capture under way is none yet.
void Device::Drain() {
  const CUresult result = beforeCapture_ != nullptr ? driver().cuEventSynchronize(beforeCapture_)
                                                    : driver().cuStreamSynchronize(stream_);
  Check(result, "waiting for the work enqueued so far");
}

void Device::Free(Info info) {
  Run([&](const Driver& cuda) {
    Drain();
    const Napi::Array pointers = info[0].As<Napi::Array>();
    for (uint32_t i = 0; i < pointers.Length(); i++) {
      const CUdeviceptr pointer = toPointer(pointers[i]);
      Check(cuda.cuMemFree(pointer), "freeing memory");
      allocations_.erase(pointer);
    }
  });
}

void Device::Fill(Info info) {
  Run([&](const Driver& cuda) {
    const auto byte = static_cast<unsigned char>(info[2].As<Napi::Number>().Uint32Value());
    Check(cuda.cuMemsetD8Async(toPointer(info[0]), byte, toSize(info[1]), current_), "filling memory");
  });
}

void Device::Copy(Info info) {
  Run([&](const Driver& cuda) {
    const CUresult result =
        cuda.cuMemcpyDtoDAsync(toPointer(info[0]), toPointer(info[1]), toSize(info[2]), current_);
    Check(result, "copying within the device");
  });
}

Napi::Value Device::MemoryInfo(Info info) {
  return Run([&](const Driver& cuda) -> Napi::Value {
    size_t free = 0;
    size_t total = 0;
    Check(cuda.cuMemGetInfo(&free, &total), "asking how much memory is free");
    Napi::Object report = Napi::Object::New(env_);
    report["free"] = Napi::Number::New(env_, static_cast<double>(free));
    report["total"] = Napi::Number::New(env_, static_cast<double>(total));
    return report;
  });
}
