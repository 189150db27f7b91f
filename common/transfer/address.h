// The envelope of a transport address: which kind of link, which transport, and a checksum, so that
// bytes that are no address of ours never reach a link. It guards against mistakes, not against
// somebody who forges an address. Stateless; safe from any thread.
#pragma once

#include <cstdint>
#include <string>

#include "common/base/status.h"

namespace trivium::transfer {

enum class LinkKind : uint8_t { kInProcess = 1, kUcx = 2 };

struct TransportAddress {
  LinkKind kind = LinkKind::kInProcess;
  uint64_t transport_id = 0;  // drawn at random by every transport
  std::string link;           // what Link::address() gave
};

std::string EncodeAddress(const TransportAddress& address);
// INVALID_ARGUMENT for anything that EncodeAddress did not write, or another kind.
absl::StatusOr<TransportAddress> DecodeAddress(const std::string& bytes, LinkKind kind);

}  // namespace trivium::transfer
