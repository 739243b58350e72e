// The echo on gRPC C++'s generic callback service: what gRPC's C core costs without protobuf.
//
// Takes nothing; listens on a free loopback port, says its address on stdout, serves until its stdin ends.
// A message's slices go back as they came: their references are counted, nothing is copied.
#include <grpcpp/generic/async_generic_service.h>

#include "../grpc-cpp/serve.h"

namespace {

// One call: reads, writes what it read, reads again.
class Call final : public grpc::ServerGenericBidiReactor {
 public:
  // Headers leave at once, because clients wait for them.
  explicit Call(grpc::GenericCallbackServerContext* context) {
    context->AddInitialMetadata("server", Product("generic callback"));
    StartSendInitialMetadata();
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      StartWrite(&message_);
    } else {
      Finish(grpc::Status::OK);
    }
  }

  void OnWriteDone(bool ok) override {
    if (ok) {
      StartRead(&message_);
    } else {
      Finish(grpc::Status::CANCELLED);
    }
  }

  void OnDone() override { delete this; }

 private:
  grpc::ByteBuffer message_;
};

class Service final : public grpc::CallbackGenericService {
 public:
  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override {
    if (context->method() == "/echo.v1.Echo/Bidi") return new Call(context);
    return grpc::CallbackGenericService::CreateReactor(context);
  }
};

}  // namespace

int main() {
  Service service;
  return Serve([&](grpc::ServerBuilder& builder) { builder.RegisterCallbackGenericService(&service); });
}
