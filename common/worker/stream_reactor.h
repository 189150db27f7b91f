// The gRPC end of one server stream: a thin shell over Outbox. Deletes itself when the call is
// over, which is after Close. Thread-safety: Push and Close from any thread, but none after the
// Close that took effect has been called by the stream's producer.
#pragma once

#include <grpcpp/grpcpp.h>

#include <utility>

#include "common/net/server.h"
#include "common/worker/admission.h"
#include "common/worker/outbox.h"

namespace trivium::worker {

template <typename Event>
class StreamReactor : public grpc::ServerWriteReactor<Event> {
 public:
  void Push(Event event) { Do(outbox_.Push(std::move(event))); }
  // Every call must be closed, a cancelled one too, or the server cannot shut down.
  void Close(absl::Status status) { Do(outbox_.Close(std::move(status))); }
  bool idle() const { return outbox_.idle(); }

  void OnWriteDone(bool ok) final { Do(outbox_.WriteDone(ok)); }
  void OnDone() override { delete this; }

 protected:
  ~StreamReactor() override = default;

 private:
  using Next = typename Outbox<Event>::Next;

  void Do(Next next) {
    switch (next) {
      case Next::kNothing:
        return;
      case Next::kWrite:
        return this->StartWrite(&outbox_.current());
      case Next::kFinish:
        return this->Finish(WithHint(outbox_.TakeStatus()));
    }
  }

  static grpc::Status WithHint(const absl::Status& status) {
    return absl::IsResourceExhausted(status) ? net::ToGrpc(status, kRetryHint)
                                             : net::ToGrpc(status);
  }

  Outbox<Event> outbox_;
};

}  // namespace trivium::worker
