// YAML files parsed strictly into the messages of proto/trivium/v1/config.proto.
// Stateless; safe from any thread. Errors read "FILE:LINE: field.path: what is wrong and what is
// allowed".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/base/status.h"
#include "trivium/v1/config.pb.h"

namespace trivium::config {

// Fills `message` from a YAML file (empty path: nothing to read) by field names. Refused: unknown
// and repeated keys, wrong types, numbers that do not fit, files over 1 MiB, YAML anchors and
// aliases.
absl::Status LoadYaml(const std::string& path, google::protobuf::Message* message);
// The same for text; `name` stands for the file in errors.
absl::Status ParseYamlInto(const std::string& text, const std::string& name,
                           google::protobuf::Message* message);

// Sets what is unset to the defaults stated in config.proto and checks every range, that a model is
// named, and that without a cluster token `listen` is an address of this machine alone. Errors
// start with the field's path. `role`: prefill, decode or encode.
absl::Status Complete(v1::WorkerConfig* config, std::string_view role);
absl::Status Complete(v1::RouterConfig* config);
// A part of the former. No tenants become the tenant "default".
absl::Status Complete(v1::TenancyConfig* config);

// Parts of the same: what is not said of categories that are shipped; what goes beyond one field.
absl::Status AddShippedCategories(v1::SemanticCacheConfig* config);
absl::Status CheckSemanticCache(const v1::SemanticCacheConfig& config);

// Every field that is set, in a form that LoadYaml reads back to an equal message.
std::string ToYaml(const google::protobuf::Message& message);

// "512MiB", "2GiB", "1000000" -> bytes.
absl::StatusOr<int64_t> ParseBytes(std::string_view text);

// The token from a file, whitespace at its end cut: 16 to 4096 visible ASCII characters. "" for an
// empty path.
absl::StatusOr<std::string> ReadClusterToken(const std::string& path);

// The bytes of a file of 32 to 4096 that not everybody may read or write: a newline at its end
// counts. `field` is the one that names it, for errors.
absl::StatusOr<std::string> ReadKey(std::string_view field, const std::string& path);
// The router's, and that of a worker's disk.
absl::StatusOr<std::string> ReadMasterKey(const v1::TenancyConfig& config);
absl::StatusOr<std::string> ReadDiskKey(const v1::KvTiersConfig& config);
// Its text, or what its file holds, unchanged.
absl::StatusOr<std::string> ReadPublicText(const v1::PublicPrefixConfig& prefix);
// That all files it names are such.
absl::Status CheckFiles(const v1::TenancyConfig& config);

}  // namespace trivium::config
