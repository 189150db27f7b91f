// Test support: workers that exist in memory only, whose every event is decided by the test: order,
// delay, refusal, failure, silence, restart. They stand behind the real dispatcher.
//
// A retry that gets its prompt, an index or the seed of a choice wrong gives other tokens
// (sim_model.h). After a
// call was cancelled its late events carry wrong ids: whoever takes one shows it. Thread-safety:
// all methods, any thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "services/router/dispatch/dispatcher.h"
#include "services/router/dispatch/sim_model.h"

namespace trivium::router {

class SimCluster final : public StageClients {
 public:
  explicit SimCluster(SimOptions options);
  ~SimCluster() override;

  void Attach(Dispatcher* dispatcher) { dispatcher_ = dispatcher; }
  std::vector<WorkerAddress> addresses() const;
  static constexpr char kFingerprint[] = "0123456789abcdef0123456789abcdef";

  // One event of one random call; with probability `fault` a failure instead. False: none is open.
  bool StepRandomCall(std::mt19937_64& random, double fault);
  // A Watch message, unless the worker is stopped or down. False: the stream has to begin anew.
  bool Report(WorkerIndex worker, const v1::KvEvents* events = nullptr);
  void Kill(WorkerIndex worker);  // its calls end UNAVAILABLE
  void Restart(WorkerIndex worker);
  void SetStopped(WorkerIndex worker, bool stopped);  // neither events nor reports; calls stay open
  void SetOnOpen(std::function<void()> hook);         // called when the next call is opened, once
  void SetRefusing(WorkerIndex worker, absl::Status status);  // every new call ends so; OK: serves
  // Ends the oldest decode call that has sent a token, as a worker does that needs its blocks.
  // False: there is none.
  bool Preempt();

  int worker_count() const { return static_cast<int>(workers_.size()); }
  int calls_opened() const;
  int choices_ended() const;        // by the router, at the calls that they belong to
  int calls_not_cancelled() const;  // open, and nobody has cancelled them
  int64_t blocks_held() const;
  // The domains that came with each call which had some.
  struct Told {
    Role stage = Role::kPrefill;
    uint32_t attempt = 0;
    std::vector<v1::KvDomain> domains;
  };
  std::vector<Told> told() const {
    std::lock_guard lock(mutex_);
    return told_;
  }
  std::vector<v1::SendPrefixRequest> pulls() const {
    std::lock_guard lock(mutex_);
    return pulls_;
  }  // that were asked for
  std::vector<v1::PrefillRequest> prefills() const {
    std::lock_guard lock(mutex_);
    return prefills_;
  }

  std::shared_ptr<StageCall> Prefill(WorkerIndex worker, const v1::PrefillRequest& request,
                                     std::optional<TimePoint> deadline,
                                     StageHandlers<v1::PrefillEvent> handlers) override;
  std::shared_ptr<StageCall> SendPrefix(WorkerIndex worker, const v1::SendPrefixRequest& request,
                                        std::optional<TimePoint> deadline,
                                        StageHandlers<v1::PrefixSent> handlers) override;
  std::shared_ptr<StageCall> Decode(WorkerIndex worker, const v1::DecodeRequest& request,
                                    std::optional<TimePoint> deadline,
                                    StageHandlers<v1::DecodeEvent> handlers) override;
  std::shared_ptr<StageCall> Encode(WorkerIndex, const v1::EncodeRequest&, std::optional<TimePoint>,
                                    StageHandlers<v1::EncodeEvent>) override {
    TRIVIUM_CHECK(false, "these prefill workers ask for no slices");
  }
  void EndChoice(WorkerIndex worker, const v1::EndChoiceRequest& request) override;

 private:
  struct Call;
  struct Landing;
  struct Worker {
    Role role = Role::kPrefill;
    uint64_t epoch = 1;
    bool is_up = true, is_stopped = false;
    absl::Status refuses;
    int64_t blocks_used = 0;
    int requests = 0;
    uint64_t sequence = 0;
  };

  std::shared_ptr<Call> Open(Role role, WorkerIndex worker, const v1::RequestKey& key,
                             const google::protobuf::RepeatedField<int32_t>& ids,
                             int32_t output_index, int32_t choices,
                             const v1::StageSampling& sampling);
  template <typename Request>
  void Tell(Role stage, const Request& request);
  v1::StageToken NextToken(Call& call, int32_t choice);
  bool HasRoom(Call& call);
  void StepPull(Call& call);
  void StepDecode(Call& call, std::mt19937_64& random);
  bool AddPromptTokens(Call& call, std::mt19937_64& random, v1::PromptLogprobs* message);
  void StepPrefill(Call& call, std::mt19937_64& random);
  absl::Status Admit(Call& call);
  void End(Call& call, const absl::Status& status);
  void Refused(const std::shared_ptr<Call>& call);

  const SimOptions options_;
  Dispatcher* dispatcher_ = nullptr;
  mutable std::mutex mutex_;
  std::vector<Worker> workers_;
  std::vector<std::shared_ptr<Call>> calls_;
  std::map<std::pair<std::string, uint32_t>, std::shared_ptr<Landing>> landings_;
  int opened_ = 0, choices_ended_ = 0;
  std::vector<Told> told_;
  std::vector<v1::SendPrefixRequest> pulls_;
  std::vector<v1::PrefillRequest> prefills_;
  std::function<void()> on_open_;
};

}  // namespace trivium::router
