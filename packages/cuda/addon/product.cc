// Matrix products by cuBLASLt.
#include "device.h"

Napi::Value Device::LoadBlas(Info info) {
  return Run([&](const Driver&) -> Napi::Value {
    blas_ = Blas::open(info[0].As<Napi::String>());
    return Napi::Number::New(env_, blas_ ? static_cast<double>(blas_->version()) : 0);
  });
}

Napi::Value Device::PlanProduct(Info info) {
  return Run([&](const Driver&) -> Napi::Value {
    const ProductShape shape = {toSize(info[0]),
                                toSize(info[1]),
                                toSize(info[2]),
                                info[3].As<Napi::Boolean>(),
                                info[4].As<Napi::Boolean>(),
                                info[5].As<Napi::Number>().Int32Value(),
                                info[6].As<Napi::Number>().Int32Value()};
    Product* product = blas_->plan(shape, toSize(info[7]));
    if (product == nullptr) return env_.Undefined();
    Napi::Object planned = Napi::Object::New(env_);
    planned["plan"] = toNumber(env_, product);
    planned["workspaceBytes"] = Napi::Number::New(env_, static_cast<double>(product->workspaceBytes));
    return planned;
  });
}

Napi::Value Device::RunProduct(Info info) {
  return Run([&](const Driver&) -> Napi::Value {
    const bool enqueued = blas_->run(*toHandle<Product*>(info[0]), toPointer(info[1]), toPointer(info[2]),
                                     toPointer(info[3]), toPointer(info[4]), toPointer(info[5]), current_);
    return Napi::Boolean::New(env_, enqueued);
  });
}
