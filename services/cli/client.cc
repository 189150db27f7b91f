#include "services/cli/client.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "common/net/text.h"

namespace trivium::cli {
namespace {

constexpr double kQuestionTimeoutS = 10;

}  // namespace

bool Canceller::Cancel() {
  const std::lock_guard lock(mutex_);
  if (context_ != nullptr) context_->TryCancel();
  return context_ != nullptr;
}

void Canceller::Set(grpc::ClientContext* context) {
  const std::lock_guard lock(mutex_);
  context_ = context;
}

Client::Client(std::string address, double timeout_s, std::string api_key)
    : address_(std::move(address)),
      timeout_s_(timeout_s),
      api_key_(std::move(api_key)),
      stub_(v1::Inference::NewStub(net::MakeChannel(address_))) {}

void Client::Prepare(grpc::ClientContext* context, double timeout_s) const {
  if (!api_key_.empty()) context->AddMetadata("authorization", "Bearer " + api_key_);
  if (timeout_s <= 0) return;
  const auto timeout = std::chrono::duration<double>(timeout_s);
  context->set_deadline(std::chrono::system_clock::now() +
                        std::chrono::duration_cast<std::chrono::microseconds>(timeout));
}

template <typename Response, typename Request, typename Method>
absl::StatusOr<Response> Client::Ask(Method method, const Request& request) {
  grpc::ClientContext context;
  Prepare(&context, kQuestionTimeoutS);
  Response response;
  RETURN_IF_ERROR(Explain((stub_.get()->*method)(&context, request, &response), address_));
  return response;
}

absl::Status Client::Generate(const v1::GenerateRequest& request, Answer* answer,
                              const std::function<void(const v1::Delta&)>& on_delta,
                              Canceller* canceller) {
  grpc::ClientContext context;
  Prepare(&context, timeout_s_);
  if (canceller != nullptr) canceller->Set(&context);
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  absl::Status kept_to;
  while (reader->Read(&response)) {
    if (kept_to.ok()) kept_to = answer->Add(response);
    if (!kept_to.ok()) context.TryCancel();
    if (kept_to.ok() && response.has_delta() && on_delta) on_delta(response.delta());
  }
  const grpc::Status end = reader->Finish();
  if (canceller != nullptr) canceller->Set(nullptr);
  RETURN_IF_ERROR(kept_to);
  RETURN_IF_ERROR(Explain(end, address_));
  return answer->CheckComplete();
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(const v1::TokenizeRequest& request) {
  return Ask<v1::TokenizeResponse>(&v1::Inference::Stub::Tokenize, request);
}

absl::StatusOr<v1::ExplainResponse> Client::ExplainPlacement(const std::string& request_id) {
  v1::ExplainRequest request;
  request.set_request_id(request_id);
  return Ask<v1::ExplainResponse>(&v1::Inference::Stub::Explain, request);
}

absl::StatusOr<v1::CacheStatsResponse> Client::CacheStats() {
  return Ask<v1::CacheStatsResponse>(&v1::Inference::Stub::CacheStats, v1::CacheStatsRequest());
}

absl::StatusOr<v1::CacheExplainResponse> Client::CacheExplain(const v1::GenerateRequest& request) {
  return Ask<v1::CacheExplainResponse>(&v1::Inference::Stub::CacheExplain, request);
}

absl::StatusOr<v1::CacheInvalidateResponse> Client::CacheInvalidate(
    const v1::CacheInvalidateRequest& request) {
  return Ask<v1::CacheInvalidateResponse>(&v1::Inference::Stub::CacheInvalidate, request);
}

absl::StatusOr<v1::ListModelsResponse> Client::ListModels() {
  return Ask<v1::ListModelsResponse>(&v1::Inference::Stub::ListModels, v1::ListModelsRequest());
}

absl::StatusOr<v1::ClusterStatusResponse> Client::ClusterStatus() {
  return Ask<v1::ClusterStatusResponse>(&v1::Inference::Stub::ClusterStatus,
                                        v1::ClusterStatusRequest());
}

absl::Status Explain(const grpc::Status& status, const std::string& address) {
  const absl::Status plain = net::FromGrpc(status);
  if (plain.code() == absl::StatusCode::kUnavailable &&
      status.error_message().rfind("failed to connect", 0) == 0) {
    return Unavailable("no router answers at {}; start one, or name another with --router",
                       address);
  }
  if (const auto hint = net::RetryAfter(status); hint.has_value()) {
    return MakeStatus(plain.code(), "{} (try again in {:.1f} s)", Message(plain),
                      std::chrono::duration<double>(*hint).count());
  }
  return plain;
}

void PrintText(const std::string& text) {
  static const bool terminal = isatty(STDOUT_FILENO) == 1;
  const std::string shown = terminal ? ForTerminal(text) : text;
  std::fwrite(shown.data(), 1, shown.size(), stdout);
  std::fflush(stdout);
}

int Fail(const absl::Status& status) {
  std::fflush(stdout);
  std::fprintf(stderr, "trivium: %s: %s\n", absl::StatusCodeToString(status.code()).c_str(),
               net::Escape(Message(status), 4096).c_str());
  return 1;
}

}  // namespace trivium::cli
