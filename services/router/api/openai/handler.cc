#include "services/router/api/openai/handler.h"

#include <ctime>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/net/text.h"
#include "services/router/api/openai/answer_sink.h"
#include "services/router/api/openai/error.h"
#include "services/router/api/openai/prompt_fan_in.h"

namespace trivium::router::openai {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kModelsPath = "/v1/models/";
constexpr size_t kShownMax = 80, kFingerprintCharacters = 12;

// The method of a path; empty: there is no such path.
std::string_view MethodOf(std::string_view path) {
  if (path == "/v1/chat/completions" || path == "/v1/completions") return "POST";
  for (const std::string_view known : {"/v1/models", "/health", "/metrics"}) {
    if (path == known) return "GET";
  }
  const bool is_model =
      path.size() > kModelsPath.size() && path.substr(0, kModelsPath.size()) == kModelsPath;
  return is_model ? "GET" : std::string_view();
}

AnswerHead HeadOf(const Question& question, const RequestValidator& validator,
                  const std::string& request_id) {
  const model::Model& model = validator.model();
  const v1::Sampling& sampling = question.requests[0].sampling();
  const bool is_chat = question.endpoint == Endpoint::kChat;
  AnswerHead head;
  head.endpoint = question.endpoint;
  head.id = (is_chat ? "chatcmpl-" : "cmpl-") + request_id;
  head.model = validator.model_id();
  head.fingerprint = "fp_" + model.fingerprint.substr(0, kFingerprintCharacters);
  head.created = std::time(nullptr);
  head.has_logprobs = sampling.has_logprobs();
  head.wants_usage = question.wants_usage;
  head.tokenizer = model.tokenizer.get();
  head.end_ids = {sampling.stop_token_ids().begin(), sampling.stop_token_ids().end()};
  if (!sampling.ignore_eos()) {
    for (const int32_t id : model.tokenizer->end_of_generation_ids()) head.end_ids.insert(id);
  }
  return head;
}

}  // namespace

OpenAiHandler::OpenAiHandler(const Backend& backend, const telemetry::Metrics* registry)
    : backend_(backend), registry_(*registry), started_(std::time(nullptr)) {}

absl::StatusOr<Caller> OpenAiHandler::CallerOf(const http::RequestHead& head) const {
  return backend_.Authenticate({head.authorization, head.x_api_key});
}

// /metrics tells of all tenants: not to each of several.
absl::Status OpenAiHandler::Admit(const http::RequestHead& head) const {
  if (head.path == "/health") return absl::OkStatus();
  ASSIGN_OR_RETURN(const Caller caller, CallerOf(head));
  if (head.path != "/metrics" || !backend_.tenants->has_keys() || caller.is_administrator) {
    return absl::OkStatus();
  }
  return absl::PermissionDeniedError("this is for administrators alone");
}

std::optional<http::Response> OpenAiHandler::Refuse(const http::RequestHead& head) {
  const std::string_view method = MethodOf(head.path);
  if (method.empty()) {
    return ErrorResponse(404,
                         fmt::format("there is nothing at {}", net::Escape(head.path, kShownMax)),
                         "unknown_url");
  }
  if (head.method != method) {
    http::Response response =
        ErrorResponse(405, fmt::format("{} alone is allowed here", method), "method_not_allowed");
    response.headers.emplace_back("Allow", method == "GET" ? "GET, HEAD" : "POST");
    return response;
  }
  if (const absl::Status admitted = Admit(head); !admitted.ok()) return ErrorResponse(admitted);
  // Browsers send any other type across origins without asking first.
  if (method == "POST" && head.content_type != "application/json") {
    return ErrorResponse(415, "Content-Type: application/json is needed", "unsupported_media_type");
  }
  if (!head.content_encoding.empty() && head.content_encoding != "identity") {
    return ErrorResponse(415, "the body must not be compressed", "unsupported_media_type");
  }
  return std::nullopt;
}

http::Response OpenAiHandler::Error(int status, std::string_view message) const {
  return ErrorResponse(status, message, "");
}

void OpenAiHandler::Enqueue(const Exchange& exchange, std::function<void()> task) {
  const absl::Status taken = backend_.Enqueue(std::move(task));
  if (!taken.ok()) exchange->Send(ErrorResponse(taken));
}

void OpenAiHandler::Handle(http::Request request, Exchange exchange) {
  const std::string& path = request.head.path;
  if (path == "/health") return exchange->Send({.status = 200, .body = R"({"status":"ok"})"});
  if (path == "/v1/models") return exchange->Send(Models());
  if (request.head.method == "GET" && path != "/metrics") {
    return exchange->Send(OneModel(path.substr(kModelsPath.size())));
  }
  if (path == "/metrics") {
    return Enqueue(exchange, [this, exchange] {
      exchange->Send({.status = 200,
                      .body = registry_.Text(),
                      .content_type = "text/plain; version=0.0.4; charset=utf-8"});
    });
  }
  const absl::StatusOr<Caller> caller = CallerOf(request.head);
  if (!caller.ok()) return exchange->Send(ErrorResponse(caller.status()));
  const Endpoint endpoint = path == "/v1/completions" ? Endpoint::kCompletions : Endpoint::kChat;
  Enqueue(exchange, [this, endpoint, caller = *caller, exchange, body = std::move(request.body)] {
    Answer(endpoint, caller, *body, exchange);
  });
}

void OpenAiHandler::Answer(Endpoint endpoint, const Caller& caller, const std::string& body,
                           const Exchange& exchange) {
  const absl::StatusOr<Question> question = ParseQuestion(endpoint, body);
  if (question.ok()) return Start(*question, caller, exchange);
  backend_.metrics->Refused(RefuseReason::kInvalid);
  exchange->Send(ErrorResponse(question.status()));
}

void OpenAiHandler::Start(const Question& question, const Caller& caller,
                          const Exchange& exchange) {
  std::vector<RunRequest> runs;
  for (const v1::GenerateRequest& request : question.requests) {
    absl::StatusOr<RunRequest> run = backend_.Prepare(caller, request);
    if (!run.ok()) {
      backend_.metrics->Refused(RefuseReason::kInvalid);
      return exchange->Send(ErrorResponse(InClientTerms(run.status(), question, runs.size())));
    }
    runs.push_back(*std::move(run));
  }
  AnswerHead head = HeadOf(question, *backend_.validator, runs[0].id);
  std::shared_ptr<ResponseSink> sink;
  if (question.is_stream) {
    sink = std::make_shared<StreamAnswer>(std::move(head), exchange);
  } else {
    sink = std::make_shared<WholeAnswer>(std::move(head), exchange);
  }
  const v1::Sampling& sampling = question.requests[0].sampling();
  const auto all =
      std::make_shared<PromptFanIn>(sink, runs.size(), sampling.has_n() ? sampling.n() : 1);
  exchange->OnGone([all] { all->Cancel(); });
  for (size_t i = 0; i < runs.size(); ++i) {
    backend_.Submit(question.requests[i], std::move(runs[i]), all->SinkOf(i),
                    [all, i](const std::shared_ptr<RequestRun>& run) { all->run(i).Set(run); });
  }
}

std::string OpenAiHandler::ModelCard() const {
  return Json{{"id", backend_.validator->model_id()},
              {"object", "model"},
              {"created", started_},
              {"owned_by", "trivium"},
              {"max_model_len", backend_.validator->model().config.context}}
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

http::Response OpenAiHandler::Models() const {
  return {.status = 200, .body = fmt::format(R"({{"object":"list","data":[{}]}})", ModelCard())};
}

http::Response OpenAiHandler::OneModel(const std::string& name) const {
  const absl::Status served = backend_.validator->CheckModel(name);
  if (!served.ok()) return ErrorResponse(served);
  return {.status = 200, .body = ModelCard()};
}

}  // namespace trivium::router::openai
