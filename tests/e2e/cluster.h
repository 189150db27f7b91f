// A whole cluster of real processes on the loopback interface, and a client of its router.
// Thread-safety: Start, faults and restarts on one thread; Generate from any number of threads.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "tests/e2e/process.h"
#include "trivium/v1/inference.grpc.pb.h"

namespace trivium::e2e {

// What one Generate call gave. Indices are checked as they come: a gap or a repetition is an error
// here.
struct Answer {
  absl::Status status;
  std::string text;
  std::vector<int32_t> ids;
  std::vector<v1::OutputToken> prompt;  // where prompt_logprobs was asked for
  std::vector<float> logprobs;
  v1::Done done;
};

// A configuration of two tenants, alice and bob, by the keys "alice-key" and "bob-key".
inline constexpr char kTwoTenants[] =
    "tenancy:\n  tenants:\n"
    "    - {id: alice, api_key_sha256: "
    "[72ee9d4355ccb9d3a4c9dbf37382e38e75c1b1a225b5bd1f729ee91bbda30c20]}\n"
    "    - {id: bob, api_key_sha256: "
    "[9b94dc1a51a38769f135edf04033ad7f2f487b6c25929be7a861cfc1ab10cf98]}\n";

struct ClusterOptions {
  std::string model;  // empty: TRIVIUM_TEST_MODEL
  int prefill_workers = 1, decode_workers = 1, encode_workers = 0;
  std::string tower;             // mmproj file; empty: no pictures
  bool encodes_locally = false;  // prefill workers have the tower
  int threads = 1;
  std::string numerics = "batch_invariant";
  std::string isa = "auto";
  int step_tokens = 512;
  int requests_max = 256;
  int64_t prefill_kv_bytes = int64_t{128} << 20;
  int64_t decode_kv_bytes = int64_t{256} << 20;
  std::string transports = "posix,tcp,self";
  double timeout_scale = 1;
  std::string cluster_token;         // empty: none
  std::string worker_cluster_token;  // empty: the same
  // More of the router's file. Without reuse, so that what a request computes and moves does not
  // depend on those before it.
  std::string router_config = "tenancy: {tenants: [{id: default, kv_sharing: none}]}\n";
  // By role, more of the workers' engine section: lines of two spaces.
  std::map<std::string, std::string> engine_config = {};
  std::string api_key;  // of the client; empty: none
  double queue_timeout_s = 300;
  Duration ready_timeout = std::chrono::seconds(60);
};

class Cluster {
 public:
  explicit Cluster(ClusterOptions options);
  ~Cluster();

  // Starts everything and waits until every worker is ready; the error holds the end of the failing
  // log.
  absl::Status Start();
  absl::Status WaitReady(int prefill_workers, int decode_workers, Duration timeout,
                         int encode_workers = 0);

  // `on_token` is called for each output token as it comes.
  Answer Generate(const v1::GenerateRequest& request,
                  const std::function<void(int index)>& on_token = nullptr,
                  Duration deadline = std::chrono::seconds(300));
  v1::ClusterStatusResponse Status();
  int CountTokens(const std::string& text);
  void set_api_key(std::string key) { options_.api_key = std::move(key); }
  // Waits until no worker uses or leases a block; the error lists those that do.
  absl::Status WaitIdle(Duration timeout);

  Process& worker(const std::string& role, int index) { return workers_.at(Name(role, index)); }
  Process& router() { return router_; }
  void Restart(const std::string& role, int index);
  // The metrics page of a process: "router", "prefill-0"…
  std::string Metrics(const std::string& name);
  // Sum over all label sets of a metric on that page.
  double MetricSum(const std::string& name, const std::string& metric);
  const std::string& directory() const { return directory_; }
  std::string router_address() const;
  std::unique_ptr<v1::Inference::Stub> NewStub() const;
  static std::string Name(const std::string& role, int index) {
    return role + "-" + std::to_string(index);
  }

 private:
  void SetUp(grpc::ClientContext* context, Duration deadline) const;
  void WriteWorkerConfig(const std::string& role, int index);
  std::string PicturesOf(const std::string& role) const;
  void WriteRouterConfig();
  void StartWorker(const std::string& role, int index);

  ClusterOptions options_;
  std::string directory_;
  std::map<std::string, int> ports_, metrics_ports_;
  std::map<std::string, Process> workers_;
  Process router_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

// The model for end-to-end tests, or "" when TRIVIUM_TEST_MODEL is unset.
std::string TestModel();

v1::GenerateRequest TextRequest(const std::string& prompt, int max_tokens);
v1::GenerateRequest TokensRequest(const std::vector<int32_t>& ids, int max_tokens);

}  // namespace trivium::e2e
