// The echo on gRPC C++'s callback API, typed by the official generator.
//
// Takes nothing; listens on a free loopback port, says its address on stdout, serves until its stdin ends.
// The callback API is what gRPC's authors recommend for new servers.
#include <echo/v1/echo.grpc.pb.h>

#include "serve.h"

namespace {

using echo::v1::EchoMessage;

// One call: reads, writes what it read, reads again. One message holds them all, so its memory is reused.
class Call final : public grpc::ServerBidiReactor<EchoMessage, EchoMessage> {
 public:
  // Headers leave at once, because clients wait for them.
  explicit Call(grpc::CallbackServerContext* context) {
    context->AddInitialMetadata("server", Product("callback"));
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
  EchoMessage message_;
};

class Service final : public echo::v1::Echo::CallbackService {
 public:
  grpc::ServerBidiReactor<EchoMessage, EchoMessage>* Bidi(
      grpc::CallbackServerContext* context) override {
    return new Call(context);
  }
};

}  // namespace

int main() {
  Service service;
  return Serve([&](grpc::ServerBuilder& builder) { builder.RegisterService(&service); });
}
