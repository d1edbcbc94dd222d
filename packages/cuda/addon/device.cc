#include "device.h"

Napi::Error toJavaScript(Napi::Env env, const DriverError& error) {
  Napi::Error converted = Napi::Error::New(env, error.what());
  converted.Set("cudaName", Napi::String::New(env, error.cuda_name));
  return converted;
}

Napi::Function Device::Define(Napi::Env env) {
  return DefineClass(env, "Device",
                     {InstanceMethod<&Device::Allocate>("allocate"),
                      InstanceMethod<&Device::Free>("free"),
                      InstanceMethod<&Device::Fill>("fill"),
                      InstanceMethod<&Device::Copy>("copy"),
                      InstanceMethod<&Device::MemoryInfo>("memoryInfo"),
                      InstanceMethod<&Device::Upload>("upload"),
                      InstanceMethod<&Device::UploadNow>("uploadNow"),
                      InstanceMethod<&Device::Download>("download"),
                      InstanceMethod<&Device::Synchronize>("synchronize"),
                      InstanceMethod<&Device::LoadModule>("loadModule"),
                      InstanceMethod<&Device::GetFunction>("getFunction"),
                      InstanceMethod<&Device::AllowShared>("allowShared"),
                      InstanceMethod<&Device::LaunchMemory>("launchMemory"),
                      InstanceMethod<&Device::Launch>("launch"),
                      InstanceMethod<&Device::TensorMap>("tensorMap"),
                      InstanceMethod<&Device::LoadBlas>("loadBlas"),
                      InstanceMethod<&Device::PlanProduct>("planProduct"),
                      InstanceMethod<&Device::RunProduct>("runProduct"),
                      InstanceMethod<&Device::CreateEvent>("createEvent"),
                      InstanceMethod<&Device::RecordEvent>("recordEvent"),
                      InstanceMethod<&Device::ElapsedTime>("elapsedTime"),
                      InstanceMethod<&Device::DestroyEvent>("destroyEvent"),
                      InstanceMethod<&Device::BeginCapture>("beginCapture"),
                      InstanceMethod<&Device::EndCapture>("endCapture"),
                      InstanceMethod<&Device::LaunchGraph>("launchGraph"),
                      InstanceMethod<&Device::DestroyGraph>("destroyGraph"),
                      InstanceMethod<&Device::BeginBeside>("beginBeside"),
                      InstanceMethod<&Device::EndBeside>("endBeside"),
                      InstanceMethod<&Device::JoinBeside>("joinBeside"),
                      InstanceMethod<&Device::Close>("close")});
}

Device::Device(Info info) : Napi::ObjectWrap<Device>(info), env_(info.Env()) {
  closed_ = true;  // until everything is there, so that a failed constructor leaves nothing to close
  try {
    primary_ = Primary::acquire(info[0].As<Napi::Number>().Int32Value());
    const Primary::Use use(*primary_);
    Check(driver().cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING), "creating a stream");
    current_ = stream_;
  } catch (const DriverError& error) {
    throw toJavaScript(env_, error);
  }
  Napi::ArrayBuffer memory = Napi::ArrayBuffer::New(env_, sizeof(LaunchBlock));
  launchBlock_ = static_cast<LaunchBlock*>(memory.Data());
  launchMemory_ = Napi::Persistent(memory);
  settler_ = decltype(settler_)::New(env_, "moba-cuda", 0, 1, this);
  settler_.Unref(env_);
  // Hooks run in reverse order: this one, which ends the waiting thread, before the settler's own.
  napi_add_env_cleanup_hook(env_, OnEnvironmentEnd, this);
  closed_ = false;
}

Device::~Device() { CloseOnce(); }

void Device::Close(Info) { CloseOnce(); }

void Device::OnEnvironmentEnd(void* device) { static_cast<Device*>(device)->CloseOnce(); }

void Device::Fail(CUresult result, const std::string& doing) {
  primary_->note(result);
  throw driverError(result, doing);
}

void Device::CloseOnce() {
  if (closed_) return;
  closed_ = true;
  napi_remove_env_cleanup_hook(env_, OnEnvironmentEnd, this);
  const Driver& cuda = driver();
  try {
    const Primary::Use use(*primary_);
    if (beforeCapture_ != nullptr) {
      CUgraph unfinished = nullptr;
      if (cuda.cuStreamEndCapture(stream_, &unfinished) == CUDA_SUCCESS) cuda.cuGraphDestroy(unfinished);
      events_.insert(beforeCapture_);
    }
    MarkReads();
    Check(cuda.cuStreamSynchronize(stream_), "closing the device");
  } catch (const DriverError& error) {
    // The context is lost: what waits for it is told so, and nothing in it can be freed one by one.
    FailReads(error);
  }
  if (waiter_.joinable()) {
    {
      const std::lock_guard<std::mutex> lock(queueMutex_);
      finishing_ = true;
    }
    queueFilled_.notify_one();
    waiter_.join();
  }
  settler_.Release();
  try {
    const Primary::Use use(*primary_);
    for (CUgraphExec graph : graphs_) cuda.cuGraphExecDestroy(graph);
    blas_.reset();
    for (CUevent event : events_) cuda.cuEventDestroy(event);
    for (const UploadRing::Piece& piece : ring_.pieces) cuda.cuEventDestroy(piece.event);
    for (CUmodule module : modules_) cuda.cuModuleUnload(module);
    for (CUdeviceptr pointer : allocations_) cuda.cuMemFree(pointer);
    if (ring_.memory != nullptr) cuda.cuMemFreeHost(ring_.memory);
    if (relay_ != nullptr) cuda.cuMemFreeHost(relay_);
    if (slots_ != nullptr) cuda.cuMemFreeHost(slots_);
    if (beside_ != nullptr) cuda.cuStreamDestroy(beside_);
    cuda.cuStreamDestroy(stream_);
  } catch (const DriverError&) {
    blas_.release();  // what it holds went with the context
  }
  primary_.reset();
}
