// Copies between the host and the device, and waiting for them. All go through pinned memory and are enqueued on the
// stream, so JavaScript's memory is never used after a call, and no call waits for the device.
#include "device.h"

#include <algorithm>
#include <cstring>

namespace {

constexpr size_t kPieceBytes = size_t{8} << 20;
constexpr size_t kRingBytes = 4 * kPieceBytes;
constexpr size_t kAlignment = 256;
constexpr size_t kSlotBytes = size_t{4} << 10;
constexpr size_t kSlots = 512;

void copyOnHost(void* step) {
  const HostCopy& copy = *static_cast<const HostCopy*>(step);
  std::memcpy(copy.target, copy.source, copy.bytes);
}

size_t piecesOf(size_t bytes) { return (bytes + kPieceBytes - 1) / kPieceBytes; }

struct HostBytes {
  explicit HostBytes(const Napi::Value& value) {
    const Napi::TypedArray array = value.As<Napi::TypedArray>();
    data = static_cast<const uint8_t*>(array.ArrayBuffer().Data()) + array.ByteOffset();
    size = array.ByteLength();
  }
  const uint8_t* data;
  size_t size;
};

}  // namespace

Transfer::Transfer(size_t bytes) : memory(static_cast<uint8_t*>(malloc(bytes))), bytes(bytes) {
  if (memory == nullptr) {
    throw DriverError("CUDA_ERROR_OUT_OF_MEMORY",
                      "no memory on the host for a transfer of " + std::to_string(bytes) + " bytes");
  }
  steps.reserve(piecesOf(bytes));  // never grows: the stream is handed addresses of steps
}

void Device::Upload(Info info) {
  Run([&](const Driver&) {
    const CUdeviceptr target = toPointer(info[0]);
    const HostBytes source(info[1]);
    for (size_t done = 0; done < source.size; done += kPieceBytes) {
      const size_t bytes = std::min(kPieceBytes, source.size - done);
      if (TryUpload(target + done, source.data + done, bytes)) continue;
      return DeferUpload(target + done, source.data + done, source.size - done);
    }
  });
}

// Uploads through the ring, unless it is full of pieces that the device has not come to yet.
bool Device::TryUpload(CUdeviceptr target, const uint8_t* data, size_t bytes) {
  const Driver& cuda = driver();
  if (ring_.memory == nullptr) {
    void* memory = nullptr;
    Check(cuda.cuMemHostAlloc(&memory, kRingBytes, 0), "allocating pinned memory for uploads");
    ring_.memory = static_cast<uint8_t*>(memory);
  }
  while (!ring_.pieces.empty()) {
    const CUresult passed = cuda.cuEventQuery(ring_.pieces.front().event);
    if (passed == CUDA_ERROR_NOT_READY) break;
    Check(passed, "uploading");
    cuda.cuEventDestroy(ring_.pieces.front().event);
    ring_.pieces.pop_front();
  }
  const size_t needed = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  size_t begin = ring_.head;
  if (ring_.pieces.empty()) {
    begin = 0;
  } else {
    // In use is [tail, head), or [tail, end) and [0, head); head never catches up with tail.
    const size_t tail = ring_.pieces.front().begin;
    if (begin > tail && kRingBytes - begin < needed) begin = 0;
    if (begin <= tail && tail - begin <= needed) return false;
  }
  std::memcpy(ring_.memory + begin, data, bytes);
  Check(cuda.cuMemcpyHtoDAsync(target, ring_.memory + begin, bytes, current_), "uploading");
  ring_.pieces.push_back({RecordPoint(), begin});
  ring_.head = begin + needed;
  return true;
}

// Uploads from a copy in ordinary memory, piece by piece through the relay buffer, when the stream comes to it.
void Device::DeferUpload(CUdeviceptr target, const uint8_t* data, size_t bytes) {
  const Driver& cuda = driver();
  uint8_t* relay = Relay();
  auto* transfer = new Transfer(bytes);
  std::memcpy(transfer->memory, data, bytes);
  for (size_t done = 0; done < bytes; done += kPieceBytes) {
    const size_t piece = std::min(kPieceBytes, bytes - done);
    transfer->steps.push_back({relay, transfer->memory + done, piece});
    Check(cuda.cuLaunchHostFunc(current_, copyOnHost, &transfer->steps.back()), "uploading");
    Check(cuda.cuMemcpyHtoDAsync(target + done, relay, piece, current_), "uploading");
  }
  auto pending = std::make_unique<Pending>();
  pending->event = RecordPoint();
  pending->doing = "uploading";
  pending->transfer = transfer;
  Enqueue(std::move(pending));
}

void Device::UploadNow(Info info) {
  Run([&](const Driver& cuda) {
    const HostBytes source(info[1]);
    Drain();
    Check(cuda.cuMemcpyHtoD(toPointer(info[0]), source.data, source.size), "uploading");
  });
}

Napi::Value Device::Download(Info info) {
  return Run</* Reads */ true>([&](const Driver& cuda) -> Napi::Value {
    const CUdeviceptr source = toPointer(info[0]);
    const size_t bytes = toSize(info[1]);
    auto* transfer = new Transfer(bytes);
    auto pending = std::make_unique<Pending>();
    // The driver's queue of host functions is short: many reads of a busy device would wait in the call.
    if (bytes <= kSlotBytes) pending->slot = TakeSlot();
    if (pending->slot != nullptr) {
      Check(cuda.cuMemcpyDtoHAsync(pending->slot, source, bytes, stream_), "reading");
    } else {
      uint8_t* relay = Relay();
      for (size_t done = 0; done < bytes; done += kPieceBytes) {
        const size_t piece = std::min(kPieceBytes, bytes - done);
        Check(cuda.cuMemcpyDtoHAsync(relay, source + done, piece, stream_), "reading");
        transfer->steps.push_back({transfer->memory + done, relay, piece});
        Check(cuda.cuLaunchHostFunc(stream_, copyOnHost, &transfer->steps.back()), "reading");
      }
    }
    if (!afterRead_) pending->event = RecordPoint();
    pending->doing = "reading, or in work enqueued before";
    pending->transfer = transfer;
    const Napi::Value promise = PromiseOf(*pending);
    if (!afterRead_) {
      Enqueue(std::move(pending));
      afterRead_ = true;
    } else {
      if (reads_.empty()) settler_.NonBlockingCall();  // to EndTurn
      reads_.push_back(std::move(pending));
    }
    return promise;
  });
}

Napi::Value Device::Synchronize(Info info) {
  return Run([&](const Driver&) -> Napi::Value {
    auto pending = std::make_unique<Pending>();
    pending->event = RecordPoint();
    pending->doing = "running the work enqueued before";
    const Napi::Value promise = PromiseOf(*pending);
    Enqueue(std::move(pending));
    return promise;
  });
}

uint8_t* Device::Relay() {
  if (relay_ == nullptr) {
    void* memory = nullptr;
    Check(driver().cuMemHostAlloc(&memory, kPieceBytes, 0), "allocating pinned memory for transfers");
    relay_ = static_cast<uint8_t*>(memory);
  }
  return relay_;
}

// A slot for one read, or null when all are in use.
uint8_t* Device::TakeSlot() {
  const std::lock_guard<std::mutex> lock(queueMutex_);
  if (slots_ == nullptr) {
    void* memory = nullptr;
    Check(driver().cuMemHostAlloc(&memory, kSlots * kSlotBytes, 0), "allocating pinned memory for reads");
    slots_ = static_cast<uint8_t*>(memory);
    for (size_t i = 0; i < kSlots; i++) freeSlots_.push_back(slots_ + i * kSlotBytes);
  }
  if (freeSlots_.empty()) return nullptr;
  uint8_t* slot = freeSlots_.back();
  freeSlots_.pop_back();
  return slot;
}

CUevent Device::RecordPoint() {
  const Driver& cuda = driver();
  CUevent event = nullptr;
  Check(cuda.cuEventCreate(&event, CU_EVENT_BLOCKING_SYNC_DISABLE_TIMING), "creating an event");
  Check(cuda.cuEventRecord(event, current_), "recording an event");
  return event;
}

// Gives the reads that have none their point.
void Device::MarkReads() {
  if (reads_.empty()) return;
  reads_.back()->event = RecordPoint();
  for (auto& read : reads_) Enqueue(std::move(read));
  reads_.clear();
}

void Device::FailReads(const DriverError& error) {
  for (auto& read : reads_) {
    read->error = std::make_unique<DriverError>(error);
    Enqueue(std::move(read));
  }
  reads_.clear();
}

// After the JavaScript that has read.
void Device::EndTurn() {
  if (reads_.empty()) return;
  try {
    const Primary::Use use(*primary_);
    MarkReads();
  } catch (const DriverError& error) {
    FailReads(error);
  }
}

// Until it is settled, a promise keeps the event loop and this object alive.
Napi::Value Device::PromiseOf(Pending& pending) {
  pending.promise = std::make_unique<Napi::Promise::Deferred>(env_);
  if (unsettled_++ == 0) settler_.Ref(env_);
  Ref();
  return pending.promise->Promise();
}

void Device::Enqueue(std::unique_ptr<Pending> pending) {
  if (!waiter_.joinable()) waiter_ = std::thread([this] { WaitLoop(); });
  {
    const std::lock_guard<std::mutex> lock(queueMutex_);
    queue_.push_back(std::move(pending));
  }
  queueFilled_.notify_one();
}

// The waiting thread: takes the points in order, until it is to finish and none is left.
void Device::WaitLoop() {
  std::vector<std::unique_ptr<Pending>> group;  // ends with what has the point
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(queueMutex_);
      queueFilled_.wait(lock, [this] { return finishing_ || !queue_.empty(); });
      if (queue_.empty()) return;
      group.push_back(std::move(queue_.front()));
      queue_.pop_front();
    }
    if (group.back()->event != nullptr) WaitFor(group);
    else if (!group.back()->error) continue;
    for (auto& pending : group) {
      if (pending->promise) settler_.BlockingCall(pending.release());
      else if (!pending->error) delete pending->transfer;
    }
    group.clear();
  }
}

void Device::WaitFor(const std::vector<std::unique_ptr<Pending>>& group) {
  const Driver& cuda = driver();
  try {
    const Primary::Use use(*primary_);
    const Pending& last = *group.back();
    Check(cuda.cuEventSynchronize(last.event), last.doing);
    cuda.cuEventDestroy(last.event);
    for (const auto& pending : group) {
      if (pending->slot == nullptr) continue;
      std::memcpy(pending->transfer->memory, pending->slot, pending->transfer->bytes);
      const std::lock_guard<std::mutex> lock(queueMutex_);
      freeSlots_.push_back(pending->slot);
    }
  } catch (const DriverError& error) {
    for (const auto& pending : group) pending->error = std::make_unique<DriverError>(error);
  }
}

// Back on JavaScript's thread; without an environment when that is ending. Of nothing: the turn has ended.
void Device::Settle(Napi::Env env, Napi::Function, Device* device, Pending* settled) {
  if (settled == nullptr) {
    if (env != nullptr) device->EndTurn();
    return;
  }
  const std::unique_ptr<Pending> pending(settled);
  std::unique_ptr<Transfer> transfer(pending->error ? nullptr : pending->transfer);
  if (env == nullptr) return;
  if (--device->unsettled_ == 0 && !device->closed_) device->settler_.Unref(env);
  device->Unref();
  if (pending->error) {
    pending->promise->Reject(toJavaScript(env, *pending->error).Value());
  } else if (!transfer) {
    pending->promise->Resolve(env.Undefined());
  } else {
    const auto release = [](Napi::Env, void*, Transfer* read) { delete read; };
    const auto data = Napi::ArrayBuffer::New(env, transfer->memory, transfer->bytes, release, transfer.get());
    transfer.release();
    pending->promise->Resolve(data);
  }
}
