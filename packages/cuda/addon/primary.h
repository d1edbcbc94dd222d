// The primary context of a device: one for all threads of the process.
#pragma once

#include <atomic>
#include <memory>
#include <shared_mutex>
#include <string>

#include "driver.h"

// One life of a device's primary context, from its retain to its end or its loss. Devices of all threads share it.
class Primary {
 public:
  // The life that is on now, or a new one. One that was lost is ended first: its memory, streams and modules are gone.
  static std::shared_ptr<Primary> acquire(int ordinal);
  ~Primary();

  const CUdevice device;

  bool lost() const { return lost_; }
  // Notes a failed call's error, so that a sticky one ends this life.
  void note(CUresult result);

  // While it lives, the context is current on this thread and cannot be ended. Throws when the context is lost.
  class Use {
   public:
    explicit Use(Primary& primary);

   private:
    std::shared_lock<std::shared_mutex> lock_;
  };

 private:
  explicit Primary(CUdevice device);
  // Gives the context back, once.
  void end();

  CUcontext context_ = nullptr;
  std::atomic<bool> lost_{false};
  std::atomic<int> reason_{CUDA_SUCCESS};
  bool ended_ = false;
  std::shared_mutex use_;
};
