#include "common/net/parsed.h"

#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <map>
#include <string>

#include "common/net/text.h"

namespace trivium::net {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

// Beyond this the search costs more than its answer is worth.
constexpr size_t kSearchedBytesMax = 1 << 20;

// "" when there is none. Goes as deep as the type, which holds no message of its own kind.
std::string FindBadString(const UnknownFieldSet& fields, const google::protobuf::Descriptor& type) {
  std::map<int, int> counts;
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    const FieldDescriptor* known = type.FindFieldByNumber(field.number());
    if (known == nullptr || field.type() != UnknownField::TYPE_LENGTH_DELIMITED) continue;
    const std::string name = known->is_repeated()
                                 ? fmt::format("{}[{}]", known->name(), counts[field.number()]++)
                                 : known->name();
    if (known->type() == FieldDescriptor::TYPE_STRING && !IsUtf8(field.length_delimited())) {
      return name;
    }
    UnknownFieldSet inner;
    if (known->type() != FieldDescriptor::TYPE_MESSAGE ||
        !inner.ParseFromString(field.length_delimited())) {
      continue;
    }
    const std::string below = FindBadString(inner, *known->message_type());
    if (!below.empty()) return fmt::format("{}.{}", name, below);
  }
  return "";
}

}  // namespace

absl::Status Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message* out) {
  grpc::ByteBuffer copy(bytes);  // of references: reading takes a buffer that may change
  {
    grpc::ProtoBufferReader reader(&copy);
    if (reader.status().ok() && out->ParseFromZeroCopyStream(&reader)) return absl::OkStatus();
  }
  UnknownFieldSet fields;
  grpc::ProtoBufferReader reader(&copy);
  if (reader.status().ok() && copy.Length() <= kSearchedBytesMax &&
      fields.ParseFromZeroCopyStream(&reader)) {
    const std::string field = FindBadString(fields, *out->GetDescriptor());
    if (!field.empty()) return InvalidArgument("{}: is not valid UTF-8", field);
  }
  return InvalidArgument("the request is no {}, or holds a string that is not valid UTF-8",
                         out->GetDescriptor()->full_name());
}

}  // namespace trivium::net
