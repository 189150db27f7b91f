// The header that opens every message between two transports, and its checksum; docs/transfer.md
// gives the layout with a worked example. Bytes from the wire are hostile until DecodeHeader
// accepted them. Stateless; safe from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "common/transfer/transport.h"

namespace trivium::transfer {

inline constexpr uint32_t kWireMagic = 0x31564b54;  // "TKV1"
inline constexpr uint16_t kWireVersion = 2;
inline constexpr size_t kHeaderBytes = 120;
inline constexpr size_t kMaxPayloadBytes = 256 * 1024;
inline constexpr size_t kSealBytes = 8;  // at the end of the payload of Rows
inline constexpr size_t kMaxRowBytes = kMaxPayloadBytes - kSealBytes;
inline constexpr size_t kMaxTailBytes = 64 * 1024;
inline constexpr size_t kMaxAddressBytes = 4096;  // of a transport, envelope included

enum class MessageType : uint8_t {
  kBegin = 1,  // sender → receiver; payload: the sender's address
  kRows,       // sender → receiver; payload: rows
  kFinish,     // sender → receiver; payload: the tail
  kAbort,      // sender → receiver; `refusal` says why when a message was refused
  kAck,        // receiver → sender; `sequence` arrived whole
  kRefused,    // receiver → sender; `sequence` failed the check `refusal`
  kPing,       // either way; answered by
  kPong,
};

using HeaderBytes = std::array<uint8_t, kHeaderBytes>;

struct MessageHeader {
  MessageType type = MessageType::kPing;
  bool kv_complete = false;   // Finish: every wanted row has been sent
  uint64_t source = 0;        // transport id of whoever sent this message
  uint64_t epoch = 0;         // of the landing's worker
  uint64_t landing_id = 0;    // inside the landing's worker
  uint64_t sender_id = 0;     // inside the sender's transport
  uint64_t request_hash = 0;  // HashRequest
  Secret secret{};
  uint64_t generation = 0;
  uint64_t sequence = 0;  // 0: Begin, from 1: Rows; of Finish: the number of Rows
  uint32_t attempt = 0;
  RowRange rows;  // Rows only
  uint32_t payload_bytes = 0;
  WireFormat wire_format = WireFormat::kF16;
  Refusal refusal = Refusal::kCount;  // kCount: none
};

// The bytes of a header whose checksum covers the header and `payload`; of Rows the header alone,
// since theirs is not read before it is sent: its seal covers it.
HeaderBytes EncodeHeader(const MessageHeader& header, std::span<const uint8_t> payload);

struct DecodedHeader {
  MessageHeader header;
  uint64_t checksum = 0;
};
// Nothing when magic, version, type, sizes or reserved bytes are wrong. The checksum is not looked
// at.
std::optional<DecodedHeader> DecodeHeader(std::span<const uint8_t> bytes);

// Whether `payload` and the header that these bytes hold are the ones that were sent; of Rows the
// header alone.
bool ChecksumMatches(std::span<const uint8_t> header_bytes, std::span<const uint8_t> payload);

// The most payload that a message of this type may carry.
size_t MaxPayload(MessageType type);

// Short name of a request on the wire; the secret is what protects it.
uint64_t HashRequest(const RequestId& request);

// Compares without telling by its duration where the difference lies.
bool SecretsEqual(const Secret& a, const Secret& b);

// xxh3-64 fed in pieces, so that copying and hashing can share one pass over the cache.
class Checksum {
 public:
  Checksum();
  ~Checksum();
  Checksum(Checksum&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}
  Checksum& operator=(Checksum&&) = delete;
  void Update(std::span<const uint8_t> bytes);
  uint64_t Digest() const;

 private:
  void* state_;
};

// What the payload of Rows ends in: xxh3-64 of all bytes of the header and the rows.
using SealBytes = std::array<uint8_t, kSealBytes>;
SealBytes MakeSeal(uint64_t digest);

}  // namespace trivium::transfer
