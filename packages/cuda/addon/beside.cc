// A second stream for work that runs beside that of the first.
#include "device.h"

namespace {

constexpr int kBefore = -1;  // a priority: the lower number goes first, 0 is that of the first stream

}  // namespace

void Device::BeginBeside(Info) {
  Run([&](const Driver& cuda) {
    if (beside_ == nullptr) {
      Check(cuda.cuStreamCreateWithPriority(&beside_, CU_STREAM_NON_BLOCKING, kBefore), "creating a stream");
      for (CUevent* event : {&parting_, &meeting_}) {
        Check(cuda.cuEventCreate(event, CU_EVENT_DISABLE_TIMING), "creating an event");
        events_.insert(*event);
      }
    }
    Check(cuda.cuEventRecord(parting_, stream_), "recording an event");
    Check(cuda.cuStreamWaitEvent(beside_, parting_, 0), "waiting for an event");
    current_ = beside_;
  });
}

void Device::EndBeside(Info) {
  Run([&](const Driver& cuda) {
    current_ = stream_;
    Check(cuda.cuEventRecord(meeting_, beside_), "recording an event");
  });
}

void Device::JoinBeside(Info) {
  Run([&](const Driver& cuda) { Check(cuda.cuStreamWaitEvent(stream_, meeting_, 0), "waiting for an event"); });
}
