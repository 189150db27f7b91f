// Holds one Watch stream to each worker of the list and opens it again when it ends, after a pause
// that grows from 0.1 s to 1 s and starts anew once a report has come. Ends one by itself where its
// events no longer add up: the next stream begins with all that the worker holds.
// Thread-safety: Tick and the destructor on any one thread at a time; handlers come on gRPC's.
#pragma once

#include <grpcpp/channel.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "services/router/scheduler/placement.h"
#include "trivium/v1/stage.pb.h"

namespace trivium::router {

struct WatchHandlers {
  // False: the stream is to begin anew.
  std::function<bool(WorkerIndex, const v1::WorkerState&)> on_state;
  std::function<void(WorkerIndex, const absl::Status&)> on_end;
};

class WatchClients {
 public:
  // Channels in the order of the router's worker list. `cluster_token` may be empty.
  WatchClients(const std::vector<std::shared_ptr<grpc::Channel>>& channels,
               std::string cluster_token, WatchHandlers handlers);
  ~WatchClients();  // cancels the streams and waits for their ends

  void Tick(TimePoint now);  // opens what is due; to be called every 25 ms or so

 private:
  class Watcher;
  std::vector<std::unique_ptr<Watcher>> watchers_;
};

}  // namespace trivium::router
