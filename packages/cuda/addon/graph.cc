// Events for times, and graphs: fixed sequences of work, captured once and launched at once.
#include "device.h"

Napi::Value Device::CreateEvent(Info info) {
  return Run([&](const Driver& cuda) -> Napi::Value {
    CUevent event = nullptr;
    Check(cuda.cuEventCreate(&event, CU_EVENT_DEFAULT), "creating an event");
    events_.insert(event);
    return toNumber(env_, event);
  });
}

void Device::RecordEvent(Info info) {
  Run([&](const Driver& cuda) {
    Check(cuda.cuEventRecord(toHandle<CUevent>(info[0]), current_), "recording an event");
  });
}

Napi::Value Device::ElapsedTime(Info info) {
  return Run([&](const Driver& cuda) -> Napi::Value {
    float milliseconds = 0;
    Check(cuda.cuEventElapsedTime(&milliseconds, toHandle<CUevent>(info[0]), toHandle<CUevent>(info[1])),
          "taking the time between events");
    return Napi::Number::New(env_, milliseconds);
  });
}

void Device::DestroyEvent(Info info) {
  Run([&](const Driver& cuda) {
    const auto event = toHandle<CUevent>(info[0]);
    events_.erase(event);
    Check(cuda.cuEventDestroy(event), "destroying an event");
  });
}

void Device::BeginCapture(Info) {
  Run([&](const Driver& cuda) {
    const CUevent before = RecordPoint();
    const CUresult result = cuda.cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_RELAXED);
    if (result != CUDA_SUCCESS) {
      cuda.cuEventDestroy(before);
      Fail(result, "beginning a capture");
    }
    beforeCapture_ = before;
  });
}

Napi::Value Device::EndCapture(Info info) {
  return Run([&](const Driver& cuda) -> Napi::Value {
    cuda.cuEventDestroy(beforeCapture_);
    beforeCapture_ = nullptr;
    CUgraph graph = nullptr;
    Check(cuda.cuStreamEndCapture(stream_, &graph), "ending a capture");
    CUgraphExec ready = nullptr;
    const bool keep = info[0].As<Napi::Boolean>();
    const CUresult result = keep ? cuda.cuGraphInstantiate(&ready, graph, 0) : CUDA_SUCCESS;
    cuda.cuGraphDestroy(graph);
    Check(result, "making a graph ready to launch");
    if (keep) graphs_.insert(ready);
    return toNumber(env_, ready);
  });
}

void Device::LaunchGraph(Info info) {
  Run([&](const Driver& cuda) {
    Check(cuda.cuGraphLaunch(toHandle<CUgraphExec>(info[0]), stream_), "launching a graph");
  });
}

void Device::DestroyGraph(Info info) {
  Run([&](const Driver& cuda) {
    const auto graph = toHandle<CUgraphExec>(info[0]);
    graphs_.erase(graph);
    Check(cuda.cuGraphExecDestroy(graph), "destroying a graph");
  });
}
