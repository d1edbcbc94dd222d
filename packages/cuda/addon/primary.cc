#include "primary.h"

#include <map>
#include <mutex>

namespace {

std::mutex lives_mutex;
std::map<int, std::weak_ptr<Primary>> lives;

}  // namespace

std::shared_ptr<Primary> Primary::acquire(int ordinal) {
  const Driver& cuda = driver();
  const std::lock_guard<std::mutex> lock(lives_mutex);
  std::shared_ptr<Primary> current = lives[ordinal].lock();
  if (current && !current->lost()) return current;
  CUdevice device;
  const CUresult found = cuda.cuDeviceGet(&device, ordinal);
  if (found != CUDA_SUCCESS) throw driverError(found, "opening device " + std::to_string(ordinal));
  if (current) {
    current->end();
    // Somebody else in the process may hold the lost context too; it is of no use to anybody.
    unsigned flags;
    int active = 0;
    if (cuda.cuDevicePrimaryCtxGetState(device, &flags, &active) == CUDA_SUCCESS && active != 0) {
      cuda.cuDevicePrimaryCtxReset(device);
    }
  }
  std::shared_ptr<Primary> next(new Primary(device));
  lives[ordinal] = next;
  return next;
}

Primary::Primary(CUdevice device) : device(device) {
  const CUresult result = driver().cuDevicePrimaryCtxRetain(&context_, device);
  if (result != CUDA_SUCCESS) throw driverError(result, "opening device " + std::to_string(device));
}

Primary::~Primary() { end(); }

void Primary::end() {
  const std::unique_lock<std::shared_mutex> alone(use_);
  if (ended_ || context_ == nullptr) return;
  ended_ = true;
  driver().cuDevicePrimaryCtxRelease(device);
}

void Primary::note(CUresult result) {
  if (!isSticky(result)) return;
  reason_ = result;
  lost_ = true;
}

Primary::Use::Use(Primary& primary) : lock_(primary.use_) {
  if (primary.lost_) {
    throw driverError(static_cast<CUresult>(primary.reason_.load()), "the device was lost by an earlier failure");
  }
  const CUresult result = driver().cuCtxSetCurrent(primary.context_);
  if (result == CUDA_SUCCESS) return;
  primary.note(result);
  throw driverError(result, "making the device's context current");
}
