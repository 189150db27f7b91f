// Worker.Watch: streams the worker's state to routers, at once, then at most every 20 ms while it
// changes and at least every 500 ms, each with what has happened to the pool's KV since. When a
// draining worker has nothing left to do, it sends a last state and ends the stream. Thread-safety:
// all methods, any thread.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "common/kv/event_log.h"
#include "trivium/v1/stage.grpc.pb.h"

namespace trivium::worker {

class WatchService final : public v1::Worker::CallbackService {
 public:
  // `state` gives everything but the sequence number and the KV events; called from any thread,
  // must not block. `kv_events` outlives the service.
  WatchService(std::function<v1::WorkerState()> state, const kv::EventLog& kv_events,
               std::string cluster_token);
  ~WatchService() override;  // after the server is gone

  grpc::ServerWriteReactor<v1::WorkerState>* Watch(grpc::CallbackServerContext* context,
                                                   const v1::WatchRequest* request) override;

 private:
  class Watcher;

  void Run();
  void Tick();
  void Forget(Watcher* watcher);

  const std::function<v1::WorkerState()> state_;
  const kv::EventLog& kv_events_;
  const std::string cluster_token_;
  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stop_ = false;
  std::set<Watcher*> watchers_;
  std::thread thread_;
};

}  // namespace trivium::worker
