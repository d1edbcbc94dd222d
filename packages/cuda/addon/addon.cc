// The addon's exports: `devices()` and `Device`. Only the package's TypeScript calls them; arguments are not checked here.
#include <napi.h>

#include "device.h"

namespace {

int attribute(CUdevice device, int which) {
  int value = 0;
  const CUresult result = driver().cuDeviceGetAttribute(&value, which, device);
  if (result != CUDA_SUCCESS) throw driverError(result, "reading the properties of device " + std::to_string(device));
  return value;
}

Napi::Object describe(Napi::Env env, int ordinal) {
  const Driver& cuda = driver();
  CUdevice device;
  char name[256] = "";
  size_t bytes = 0;
  CUresult result = cuda.cuDeviceGet(&device, ordinal);
  if (result == CUDA_SUCCESS) result = cuda.cuDeviceGetName(name, sizeof name - 1, device);
  if (result == CUDA_SUCCESS) result = cuda.cuDeviceTotalMem(&bytes, device);
  if (result != CUDA_SUCCESS) throw driverError(result, "reading the properties of device " + std::to_string(ordinal));
  Napi::Object properties = Napi::Object::New(env);
  properties["name"] = name;
  properties["computeCapability"] = 10 * attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) +
                                    attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  properties["multiprocessors"] = attribute(device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  properties["l2Bytes"] = attribute(device, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
  properties["sharedBytesPerBlock"] = attribute(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  properties["memoryBytes"] = Napi::Number::New(env, static_cast<double>(bytes));
  return properties;
}

// () → { driverVersion: 12080 for CUDA 12.8, devices: [{ name, … }] }
Napi::Value devices(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  try {
    int version = 0;
    int count = 0;
    CUresult result = driver().cuDriverGetVersion(&version);
    if (result == CUDA_SUCCESS) result = driver().cuDeviceGetCount(&count);
    if (result != CUDA_SUCCESS) throw driverError(result, "counting the devices");
    Napi::Array list = Napi::Array::New(env, count);
    for (int ordinal = 0; ordinal < count; ordinal++) list[ordinal] = describe(env, ordinal);
    Napi::Object report = Napi::Object::New(env);
    report["driverVersion"] = version;
    report["devices"] = list;
    return report;
  } catch (const DriverError& error) {
    throw toJavaScript(env, error);
  }
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports["devices"] = Napi::Function::New(env, devices, "devices");
  exports["Device"] = Device::Define(env);
  return exports;
}

}  // namespace

NODE_API_MODULE(moba_cuda, init)
