// A client of the router with errors made for people. Thread-safe; calls block.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "common/base/status.h"
#include "common/net/server.h"
#include "services/cli/answer.h"
#include "trivium/v1/inference.grpc.pb.h"

namespace trivium::cli {

// Cancels a call that runs on another thread.
class Canceller {
 public:
  // False when no call was running.
  bool Cancel();

 private:
  friend class Client;
  void Set(grpc::ClientContext* context);

  std::mutex mutex_;
  grpc::ClientContext* context_ = nullptr;
};

class Client {
 public:
  // `timeout_s` bounds each Generate call; 0: none. The other calls have 10 s. `api_key` may be
  // empty: none is sent.
  Client(std::string address, double timeout_s, std::string api_key);

  // Fills `answer` as it comes; `on_delta` may be null.
  absl::Status Generate(const v1::GenerateRequest& request, Answer* answer,
                        const std::function<void(const v1::Delta&)>& on_delta,
                        Canceller* canceller = nullptr);
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request);
  absl::StatusOr<v1::ListModelsResponse> ListModels();
  absl::StatusOr<v1::ClusterStatusResponse> ClusterStatus();
  absl::StatusOr<v1::ExplainResponse> ExplainPlacement(const std::string& request_id);
  absl::StatusOr<v1::CacheStatsResponse> CacheStats();
  absl::StatusOr<v1::CacheExplainResponse> CacheExplain(const v1::GenerateRequest& request);
  absl::StatusOr<v1::CacheInvalidateResponse> CacheInvalidate(
      const v1::CacheInvalidateRequest& request);

 private:
  // One unary call of `method`.
  template <typename Response, typename Request, typename Method>
  absl::StatusOr<Response> Ask(Method method, const Request& request);
  void Prepare(grpc::ClientContext* context, double timeout_s) const;

  const std::string address_;
  const double timeout_s_;
  const std::string api_key_;
  const std::unique_ptr<v1::Inference::Stub> stub_;
};

// The status with a text that says what to do, where that is known.
absl::Status Explain(const grpc::Status& status, const std::string& address);

// Text of the model on standard output, at once; a terminal gets what ForTerminal leaves of it.
void PrintText(const std::string& text);

// "trivium: UNAVAILABLE: …" on stderr; returns the exit code 1.
int Fail(const absl::Status& status);

}  // namespace trivium::cli
