// A request and whether its bytes could be read. gRPC itself answers bytes that it cannot read,
// such as a string that is not UTF-8, with an UNIMPLEMENTED without text and asks no handler; the
// handler of a Parsed<Message> is asked, and can name the field. Plain values; safe from any
// thread.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

#include "common/base/status.h"

namespace trivium::net {

template <typename Message>
struct Parsed {
  Message message;
  absl::Status status;  // of Parse
};

// INVALID_ARGUMENT: names the first string that is not UTF-8 ("chat.messages[2].content"), or says
// that the bytes are no such message.
absl::Status Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message* out);

}  // namespace trivium::net

namespace grpc {

template <typename Message>
class SerializationTraits<trivium::net::Parsed<Message>> {
 public:
  static Status Deserialize(ByteBuffer* bytes, trivium::net::Parsed<Message>* out) {
    out->status = trivium::net::Parse(*bytes, &out->message);
    bytes->Clear();
    return Status::OK;
  }
};

}  // namespace grpc
