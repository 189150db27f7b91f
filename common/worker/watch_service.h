// Worker.Watch: streams the worker's state to routers, at once, then at most every 20 ms while it
// changes and at least every 500 ms. When a draining worker has nothing left to do, it sends a last
// state and ends the stream. Thread-safety: all methods, any thread.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "trivium/v1/stage.grpc.pb.h"

namespace trivium::worker {

class WatchService final : public v1::Worker::CallbackService {
 public:
  // `state` gives everything but the sequence number; called from any thread, must not block.
  WatchService(std::function<v1::WorkerState()> state, std::string cluster_token);
  ~WatchService() override;  // after the server is gone

  grpc::ServerWriteReactor<v1::WorkerState>* Watch(grpc::CallbackServerContext* context,
                                                   const v1::WatchRequest* request) override;

 private:
  class Watcher;

  void Run();
  void Tick();
  void Forget(Watcher* watcher);

  const std::function<v1::WorkerState()> state_;
  const std::string cluster_token_;
  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stop_ = false;
  std::set<Watcher*> watchers_;
  std::thread thread_;
};

}  // namespace trivium::worker
