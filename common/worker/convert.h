// Between the stage messages and checked values. Stateless; safe from any thread.
// Errors are INVALID_ARGUMENT and name the field, unless stated otherwise.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/status.h"
#include "common/worker/types.h"

namespace trivium::v1 {
class DecodeRequest;
class KvDomain;
class LandingTicket;
class PrefillRequest;
class RequestKey;
class SendPrefixRequest;
class StageSampling;
class StageToken;
class TenantShare;
}  // namespace trivium::v1

namespace trivium::worker {

// What a worker can serve.
struct StageLimits {
  int32_t vocab = 0;
  int32_t context = 0;
  std::string_view fingerprint;     // another one is FAILED_PRECONDITION
  std::string_view numerics_class;  // see CheckNumerics
  int32_t block_tokens = 16;
  transfer::WireFormat kv_format = transfer::WireFormat::kF16;
};

absl::StatusOr<transfer::Credentials> ToCredentials(const v1::RequestKey& key);
absl::StatusOr<kv::Domain> ToDomain(const v1::KvDomain& message);
absl::StatusOr<scheduling::TenantShare> ToShare(const v1::TenantShare& message);

absl::StatusOr<StageRequest> ToStageRequest(const v1::PrefillRequest& message,
                                            const StageLimits& limits);
// Also checks message.numerics_class.
absl::StatusOr<StageRequest> ToStageRequest(const v1::DecodeRequest& message,
                                            const StageLimits& limits);

// FAILED_PRECONDITION also for another numerics class than limits.numerics_class, under "fast" too:
// the KV will stand in for what the other worker computes.
absl::StatusOr<PrefixRequest> ToPrefixRequest(const v1::SendPrefixRequest& message,
                                              const StageLimits& limits);

// Workers of different numerics classes pair under "fast" alone: FAILED_PRECONDITION otherwise. An
// empty `theirs` is not checked.
absl::Status CheckNumerics(std::string_view ours, std::string_view theirs);

// `prompt_tokens`: what the ticket must end at.
absl::StatusOr<transfer::Ticket> ToTicket(const v1::LandingTicket& message, int32_t prompt_tokens);
void ToMessage(const transfer::Ticket& ticket, v1::LandingTicket* message);

void ToMessage(const engine::SamplingParams& params, v1::StageSampling* message);

void ToMessage(const OutputToken& token, v1::StageToken* message);
absl::StatusOr<OutputToken> ToToken(const v1::StageToken& message, int32_t vocab);

// The tail that follows the last KV row: the first token of each choice. ParseTail: DATA_LOSS when
// it is not that for `request`.
std::string SerializeTail(std::span<const OutputToken> tokens);
absl::StatusOr<std::vector<OutputToken>> ParseTail(const std::string& tail, int32_t vocab,
                                                   const StageRequest& request);

}  // namespace trivium::worker
