// A device as one thread of JavaScript uses it: the context of the process, one stream, its memory and its transfers.
#pragma once

#include <napi.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "blas.h"
#include "driver.h"
#include "primary.h"

// A copy between ordinary memory and the pinned relay buffer: a step of the stream that a thread of the driver takes.
struct HostCopy {
  void* target;
  const void* source;
  size_t bytes;
};

// The host's side of a transfer through the relay buffer. Steps that are enqueued use it until their event has passed; when
// the stream fails before that, it is left alone for ever, since a step may be under way.
struct Transfer {
  explicit Transfer(size_t bytes);
  ~Transfer() { free(memory); }
  Transfer(const Transfer&) = delete;

  uint8_t* memory;
  const size_t bytes;
  std::vector<HostCopy> steps;
};

// A point of the stream that is waited for, and what is to be done then.
struct Pending {
  // Null of a read whose point is that of a later one.
  CUevent event = nullptr;
  const char* doing = "";
  // The error instead of the point, if any.
  std::unique_ptr<DriverError> error;
  Transfer* transfer = nullptr;
  // Pinned memory that a small read arrives in, to be copied to the transfer's then.
  uint8_t* slot = nullptr;
  // Settled with the transfer's memory or nothing; absent for a deferred upload.
  std::unique_ptr<Napi::Promise::Deferred> promise;
};

// Pinned memory that uploads pass through, in order; a piece is free again when its event has passed.
struct UploadRing {
  struct Piece {
    CUevent event;
    size_t begin;
  };
  uint8_t* memory = nullptr;
  size_t head = 0;
  std::deque<Piece> pieces;
};

// A kernel, where its parameters begin, counted from the first, once it was launched, and its name for messages.
struct Kernel {
  CUfunction function;
  std::vector<size_t> offsets;
  const std::string name;
};

// The launch to come, as JavaScript describes it, in memory that both see: so a launch is a call with two numbers.
struct LaunchBlock {
  static constexpr size_t kMostParameterBytes = 4096;  // what every driver takes
  uint32_t x, y, z;
  uint32_t threads;
  uint32_t sharedBytes;
  uint8_t parameters[kMostParameterBytes];
};

class Device : public Napi::ObjectWrap<Device> {
 public:
  static Napi::Function Define(Napi::Env env);

  // new Device(ordinal)
  explicit Device(const Napi::CallbackInfo& info);
  ~Device() override;

 private:
  using Info = const Napi::CallbackInfo&;

  // memory.cc
  Napi::Value Allocate(Info info);     // (bytes) → pointer, or 0 when there is no memory
  void Free(Info info);                // (pointers[]), after the work enqueued so far; blocks
  void Fill(Info info);                // (pointer, bytes, byte)
  void Copy(Info info);                // (target, source, bytes)
  Napi::Value MemoryInfo(Info info);   // () → { free, total }
  void Drain();

  // transfer.cc
  void Upload(Info info);              // (pointer, typedArray)
  void UploadNow(Info info);           // (pointer, typedArray): not in the stream but at once, also while capturing; blocks
  Napi::Value Download(Info info);     // (pointer, bytes) → Promise<ArrayBuffer>
  Napi::Value Synchronize(Info info);  // () → Promise<void>
  uint8_t* Relay();
  uint8_t* TakeSlot();
  bool TryUpload(CUdeviceptr target, const uint8_t* data, size_t bytes);
  void DeferUpload(CUdeviceptr target, const uint8_t* data, size_t bytes);
  CUevent RecordPoint();
  void MarkReads();
  void EndTurn();
  void FailReads(const DriverError& error);
  Napi::Value PromiseOf(Pending& pending);
  void Enqueue(std::unique_ptr<Pending> pending);
  void WaitLoop();
  void WaitFor(const std::vector<std::unique_ptr<Pending>>& group);
  static void Settle(Napi::Env env, Napi::Function, Device* device, Pending* settled);

  // launch.cc
  Napi::Value LoadModule(Info info);   // (bytes) → module
  Napi::Value GetFunction(Info info);  // (module, name) → kernel
  void AllowShared(Info info);         // (kernel, bytes): dynamic shared memory that it may be launched with; at first 48 KiB
  Napi::Value LaunchMemory(Info info); // () → ArrayBuffer: the LaunchBlock
  void Launch(Info info);              // (kernel, bytes of parameters): the launch that the LaunchBlock describes
  void ReserveShared(CUfunction function, int bytes);
  void FindParameters(Kernel& kernel, size_t bytes);
  Napi::Value TensorMap(Info info);    // (pointer, type, dims, strides, box, swizzle) → Uint8Array of 128 bytes

  // product.cc
  Napi::Value LoadBlas(Info info);     // (library) → cuBLASLt's version, or 0 when there is none of that name that works
  Napi::Value PlanProduct(Info info);  // (rows, columns, inner, transposeA, transposeB, type, outType, most workspace) →
                                       // { plan, workspaceBytes }, or undefined when there is no algorithm for it
  Napi::Value RunProduct(Info info);   // (plan, a, b, addend or 0, out, workspace) → whether it is enqueued

  // graph.cc
  Napi::Value CreateEvent(Info info);  // () → event, for times
  void RecordEvent(Info info);         // (event)
  Napi::Value ElapsedTime(Info info);  // (start, end) → milliseconds between two events that have passed
  void DestroyEvent(Info info);        // (event)
  void BeginCapture(Info info);        // ()
  Napi::Value EndCapture(Info info);   // (keep) → graph, or 0 when it is not to be kept
  void LaunchGraph(Info info);         // (graph)
  void DestroyGraph(Info info);        // (graph)

  // beside.cc
  void BeginBeside(Info info);         // (): what follows goes to the second stream, after all enqueued so far
  void EndBeside(Info info);           // (): what follows goes to the first stream again, and waits for nothing
  void JoinBeside(Info info);          // (): what follows waits for the second stream

  // device.cc
  void Close(Info info);               // (): frees everything; blocks until the stream is through
  void CloseOnce();
  static void OnEnvironmentEnd(void* device);
  // Notes a failed call's error and throws it.
  [[noreturn]] void Fail(CUresult result, const std::string& doing);
  void Check(CUresult result, const char* doing) {
    if (result != CUDA_SUCCESS) Fail(result, doing);
  }
  // Runs `body(driver)` with the context current; driver errors become JavaScript errors. All but reads end a row of reads.
  template <bool Reads = false, typename Body>
  auto Run(Body body);

  Napi::Env env_;
  std::shared_ptr<Primary> primary_;
  CUstream stream_ = nullptr;
  // A second stream, which takes free multiprocessors first, and the points where the two part and meet; made on first use.
  CUstream beside_ = nullptr;
  CUevent parting_ = nullptr, meeting_ = nullptr;
  // Where work is enqueued now: one of the two.
  CUstream current_ = nullptr;
  bool closed_ = false;

  std::unordered_set<CUdeviceptr> allocations_;
  std::unordered_set<CUmodule> modules_;
  std::vector<std::unique_ptr<Kernel>> kernels_;
  Napi::Reference<Napi::ArrayBuffer> launchMemory_;
  LaunchBlock* launchBlock_ = nullptr;  // in launchMemory_
  std::unordered_set<CUevent> events_;
  std::unordered_set<CUgraphExec> graphs_;
  std::unique_ptr<Blas> blas_;

  // While capturing: the point before it.
  CUevent beforeCapture_ = nullptr;

  UploadRing ring_;
  // Pinned memory that reads and deferred uploads pass through, one piece after another in the order of the stream.
  uint8_t* relay_ = nullptr;
  // Pinned memory in small pieces, each for one read at a time; the free ones are guarded by queueMutex_.
  uint8_t* slots_ = nullptr;
  std::vector<uint8_t*> freeSlots_;

  // Whether nothing was enqueued since the last read, and reads of this turn that have no point yet: those in a row share one, since
  // what a busy device has in its queue is limited.
  bool afterRead_ = false;
  std::vector<std::unique_ptr<Pending>> reads_;

  // A thread waits for the points, so that neither JavaScript's thread nor its pool does.
  Napi::TypedThreadSafeFunction<Device, Pending, &Device::Settle> settler_;
  size_t unsettled_ = 0;
  std::thread waiter_;
  std::mutex queueMutex_;
  std::condition_variable queueFilled_;
  std::deque<std::unique_ptr<Pending>> queue_;
  bool finishing_ = false;
};

// The JavaScript error of a driver error: its `cudaName` is the driver's name of it.
Napi::Error toJavaScript(Napi::Env env, const DriverError& error);

template <bool Reads, typename Body>
auto Device::Run(Body body) {
  try {
    if (closed_) throw DriverError("CUDA_ERROR_DEINITIALIZED", "the device is closed");
    const Primary::Use use(*primary_);
    if (!Reads) {
      MarkReads();
      afterRead_ = false;
    }
    return body(driver());
  } catch (const DriverError& error) {
    throw toJavaScript(env_, error);
  }
}

// Handles of the driver and device addresses are numbers in JavaScript: both stay below 2^53.
template <typename Handle>
Napi::Number toNumber(Napi::Env env, Handle* handle) {
  return Napi::Number::New(env, static_cast<double>(reinterpret_cast<uintptr_t>(handle)));
}
template <typename Handle>
Handle toHandle(const Napi::Value& value) {
  return reinterpret_cast<Handle>(static_cast<uintptr_t>(value.As<Napi::Number>().Int64Value()));
}
inline CUdeviceptr toPointer(const Napi::Value& value) {
  return static_cast<CUdeviceptr>(value.As<Napi::Number>().Int64Value());
}
inline size_t toSize(const Napi::Value& value) {
  return static_cast<size_t>(value.As<Napi::Number>().Int64Value());
}
