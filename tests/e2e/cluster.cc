#include "tests/e2e/cluster.h"

#include <arpa/inet.h>
#include <grpcpp/grpcpp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <thread>

#include "common/net/server.h"

namespace trivium::e2e {
namespace {

constexpr char kBinaries[] = TRIVIUM_BIN_DIR;

std::string Tail(const std::string& text, size_t bytes) {
  return text.size() <= bytes ? text : text.substr(text.size() - bytes);
}

std::string HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string out;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
    if (write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size())) {
      char buffer[4096];
      for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) out.append(buffer, n);
    }
  }
  close(fd);
  return out;
}

// Appends one delta's tokens; false when an index is not the next one.
bool Append(const v1::Delta& delta, Answer* answer, const std::function<void(int)>& on_token) {
  answer->text += delta.text();
  answer->prompt.insert(answer->prompt.end(), delta.prompt_tokens().begin(),
                        delta.prompt_tokens().end());
  for (const v1::OutputToken& token : delta.tokens()) {
    if (token.index() != static_cast<int>(answer->ids.size())) {
      answer->status = absl::DataLossError(
          fmt::format("index {} came where {} was due", token.index(), answer->ids.size()));
      return false;
    }
    answer->ids.push_back(token.id());
    if (token.has_logprob()) answer->logprobs.push_back(token.logprob());
    if (on_token) on_token(token.index());
  }
  return true;
}

}  // namespace

std::string TestModel() {
  const char* path = std::getenv("TRIVIUM_TEST_MODEL");
  return path == nullptr ? "" : path;
}

v1::GenerateRequest TextRequest(const std::string& prompt, int max_tokens) {
  v1::GenerateRequest request;
  request.set_text(prompt);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->set_logprobs(0);
  return request;
}

v1::GenerateRequest TokensRequest(const std::vector<int32_t>& ids, int max_tokens) {
  v1::GenerateRequest request = TextRequest("", max_tokens);
  request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  return request;
}

Cluster::Cluster(ClusterOptions options) : options_(std::move(options)) {
  if (options_.model.empty()) options_.model = TestModel();
  std::string pattern = (std::filesystem::temp_directory_path() / "trivium-e2e-XXXXXX").string();
  TRIVIUM_CHECK(mkdtemp(pattern.data()) != nullptr, "cannot make {}", pattern);
  directory_ = pattern;
}

Cluster::~Cluster() {
  router_ = Process();
  workers_.clear();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

void Cluster::WriteWorkerConfig(const std::string& role, int index) {
  const std::string name = Name(role, index);
  ports_[name] = FreePort();
  metrics_ports_[name] = FreePort();
  std::string token = options_.worker_cluster_token.empty() ? options_.cluster_token
                                                            : options_.worker_cluster_token;
  if (!token.empty()) WriteFile(directory_ + "/worker.token", token);
  WriteFile(
      directory_ + "/" + name + ".yaml",
      fmt::format("worker_id: {}\nserver:\n  listen: 127.0.0.1:{}\n  metrics_listen: 127.0.0.1:{}\n"
                  "{}model:\n  path: {}\nengine:\n  threads: {}\n  isa: {}\n  numerics: {}\n"
                  "  kv_memory_bytes: {}\n  step_tokens: {}\n  requests_max: {}\n{}"
                  "transfer:\n  transports: \"{}\"\n  timeout_scale: {}\n{}",
                  name, ports_[name], metrics_ports_[name],
                  token.empty() ? "" : "  cluster_token_file: " + directory_ + "/worker.token\n",
                  role == "encode" ? options_.tower : options_.model, options_.threads,
                  options_.isa, options_.numerics,
                  role == "prefill" ? options_.prefill_kv_bytes : options_.decode_kv_bytes,
                  options_.step_tokens, options_.requests_max, options_.engine_config[role],
                  options_.transports, options_.timeout_scale, PicturesOf(role)));
}

std::string Cluster::PicturesOf(const std::string& role) const {
  if (options_.tower.empty() || role == "decode") return "";
  const bool is_local = role == "prefill" && options_.encodes_locally;
  return "pictures:\n  memory_bytes: 4MiB\n" +
         (is_local ? "  encode: local\n  tower: " + options_.tower + "\n" : "");
}

void Cluster::WriteRouterConfig() {
  ports_["router"] = FreePort();
  metrics_ports_["router"] = FreePort();
  if (!options_.cluster_token.empty()) {
    WriteFile(directory_ + "/router.token", options_.cluster_token);
  }
  std::string workers;
  for (const auto& [name, process] : workers_) {
    workers += fmt::format("  - address: 127.0.0.1:{}\n    role: {}\n", ports_[name],
                           name.substr(0, name.find('-')));
  }
  WriteFile(directory_ + "/router.yaml",
            fmt::format("server:\n  listen: 127.0.0.1:{}\n  metrics_listen: 127.0.0.1:{}\n{}"
                        "model:\n  path: {}\nworkers:\n{}queue_timeout_s: {}\n{}{}",
                        ports_["router"], metrics_ports_["router"],
                        options_.cluster_token.empty()
                            ? ""
                            : "  cluster_token_file: " + directory_ + "/router.token\n",
                        options_.model, workers, options_.queue_timeout_s, options_.router_config,
                        options_.tower.empty() ||
                                options_.router_config.find("pictures:") != std::string::npos
                            ? ""
                            : "pictures:\n  tower: " + options_.tower + "\n"));
}

void Cluster::StartWorker(const std::string& role, int index) {
  const std::string name = Name(role, index);
  workers_[name] = Process(
      {std::string(kBinaries) + "/trivium-" + role, "--config", directory_ + "/" + name + ".yaml"},
      directory_ + "/" + name + ".log");
}

void Cluster::Restart(const std::string& role, int index) { StartWorker(role, index); }

absl::Status Cluster::Start() {
  for (int i = 0; i < options_.prefill_workers; ++i) {
    WriteWorkerConfig("prefill", i);
    StartWorker("prefill", i);
  }
  for (int i = 0; i < options_.decode_workers; ++i) {
    WriteWorkerConfig("decode", i);
    StartWorker("decode", i);
  }
  for (int i = 0; i < options_.encode_workers; ++i) {
    WriteWorkerConfig("encode", i);
    StartWorker("encode", i);
  }
  WriteRouterConfig();
  router_ =
      Process({std::string(kBinaries) + "/trivium-router", "--config", directory_ + "/router.yaml"},
              directory_ + "/router.log");
  stub_ = NewStub();
  return WaitReady(options_.prefill_workers, options_.decode_workers, options_.ready_timeout,
                   options_.encode_workers);
}

std::string Cluster::router_address() const {
  return fmt::format("127.0.0.1:{}", ports_.at("router"));
}

std::unique_ptr<v1::Inference::Stub> Cluster::NewStub() const {
  return v1::Inference::NewStub(net::MakeChannel(router_address()));
}

absl::Status Cluster::WaitReady(int prefill_workers, int decode_workers, Duration timeout,
                                int encode_workers) {
  const TimePoint deadline = Clock::Real().Now() + timeout;
  std::string seen;
  while (Clock::Real().Now() < deadline) {
    std::map<std::string, int> ready;
    const v1::ClusterStatusResponse status = Status();
    for (const v1::WorkerStatus& worker : status.workers())
      ready[worker.role()] += worker.state() == "ready";
    if (ready["prefill"] >= prefill_workers && ready["decode"] >= decode_workers &&
        ready["encode"] >= encode_workers)
      return absl::OkStatus();
    seen = status.ShortDebugString();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  std::string logs = Tail(ReadFile(directory_ + "/router.log"), 1500);
  for (const auto& [name, process] : workers_) {
    logs += "\n--- " + name + "\n" + Tail(ReadFile(directory_ + "/" + name + ".log"), 1500);
  }
  return absl::DeadlineExceededError("cluster not ready: " + seen + "\n--- router\n" + logs);
}

void Cluster::SetUp(grpc::ClientContext* context, Duration deadline) const {
  context->set_deadline(std::chrono::system_clock::now() +
                        std::chrono::duration_cast<std::chrono::microseconds>(deadline));
  if (!options_.api_key.empty()) context->AddMetadata("x-api-key", options_.api_key);
}

int Cluster::CountTokens(const std::string& text) {
  grpc::ClientContext context;
  SetUp(&context, std::chrono::seconds(5));
  v1::TokenizeRequest request;
  request.set_text(text);
  v1::TokenizeResponse response;
  return stub_->Tokenize(&context, request, &response).ok() ? response.ids_size() : -1;
}

Answer Cluster::Generate(const v1::GenerateRequest& request,
                         const std::function<void(int)>& on_token, Duration deadline) {
  grpc::ClientContext context;
  SetUp(&context, deadline);
  Answer answer;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader =
      stub_->Generate(&context, request);
  v1::GenerateResponse response;
  bool in_order = true;
  while (reader->Read(&response)) {
    if (response.has_done()) answer.done = response.done();
    if (in_order && response.has_delta()) in_order = Append(response.delta(), &answer, on_token);
  }
  const absl::Status status = net::FromGrpc(reader->Finish());
  if (in_order) answer.status = status;
  return answer;
}

v1::ClusterStatusResponse Cluster::Status() {
  grpc::ClientContext context;
  SetUp(&context, std::chrono::seconds(5));
  v1::ClusterStatusResponse response;
  if (!stub_->ClusterStatus(&context, {}, &response).ok()) response.Clear();
  return response;
}

absl::Status Cluster::WaitIdle(Duration timeout) {
  const TimePoint deadline = Clock::Real().Now() + timeout;
  std::string seen = "no status";
  while (Clock::Real().Now() < deadline) {
    const v1::ClusterStatusResponse status = Status();
    bool idle = status.workers_size() > 0;
    for (const v1::WorkerStatus& worker : status.workers()) {
      idle &= worker.state() == "ready" && worker.blocks_free() == worker.blocks_total() &&
              worker.blocks_used() == 0 && worker.blocks_leased() == 0 &&
              worker.requests_running() == 0 && worker.requests_waiting() == 0 &&
              worker.slices_waiting() == 0 &&
              worker.picture_blocks_free() == worker.picture_blocks_total();
    }
    if (idle) return absl::OkStatus();
    seen = status.ShortDebugString();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return absl::DeadlineExceededError("blocks are still held: " + seen);
}

std::string Cluster::Metrics(const std::string& name) {
  return HttpGet(metrics_ports_.at(name), "/metrics");
}

double Cluster::MetricSum(const std::string& name, const std::string& metric) {
  std::istringstream page(Metrics(name));
  double sum = 0;
  for (std::string line; std::getline(page, line);) {
    if (line.rfind(metric, 0) != 0) continue;
    const char after = line.size() > metric.size() ? line[metric.size()] : '\0';
    if (after == ' ' || after == '{') sum += std::atof(line.c_str() + line.rfind(' ') + 1);
  }
  return sum;
}

}  // namespace trivium::e2e
