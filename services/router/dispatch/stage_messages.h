// What every message to a worker says of its request: which attempt it is, and whose its blocks
// are. Pure; safe from any thread.
#pragma once

#include <limits>
#include <vector>

#include "common/kv/block_key.h"
#include "services/router/dispatch/run_leg.h"
#include "trivium/v1/stage.pb.h"

namespace trivium::router {

inline void FillKey(const RunLeg& leg, v1::RequestKey* key) {
  key->set_request_id(leg.id);
  key->set_attempt(leg.attempt.number);
  key->set_secret(leg.attempt.secret);
}

inline void FillShare(const scheduling::TenantShare& share, v1::TenantShare* out) {
  out->set_tenant(share.tenant);
  out->set_weight(share.weight);
}

inline void FillDomain(const kv::Domain& domain, v1::KvDomain* out) {
  out->set_key(domain.key.bytes.data(), domain.key.bytes.size());
  const bool is_last = domain.token_end == std::numeric_limits<int32_t>::max();
  out->set_token_end(is_last ? 0 : domain.token_end);
  out->set_quota(domain.quota);
  out->set_floor(domain.floor);
  out->set_pin_s(domain.pin_s);
}

inline void FillDomains(const std::vector<kv::Domain>& domains,
                        google::protobuf::RepeatedPtrField<v1::KvDomain>* out) {
  for (const kv::Domain& domain : domains) FillDomain(domain, out->Add());
}

// Those that begin before `end`.
inline void FillSlices(const std::vector<RunSlice>& slices, int32_t end,
                       google::protobuf::RepeatedPtrField<v1::PictureSlice>* out) {
  for (const RunSlice& slice : slices) {
    if (slice.span.position >= end) return;
    v1::PictureSlice* message = out->Add();
    message->set_position(slice.span.position);
    message->set_tokens(slice.span.tokens);
    message->set_digest(slice.span.digest.data(), slice.span.digest.size());
  }
}

}  // namespace trivium::router
