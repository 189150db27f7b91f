// Fuzzes configuration files, as a router's and as a worker's. What is accepted must print as YAML
// that reads back to the same; what is refused must be refused in few words that can be logged.
#include <cstddef>
#include <cstdint>
#include <string>

#include "common/config/config.h"
#include "common/net/text.h"

namespace {

using namespace trivium;  // NOLINT

constexpr size_t kErrorBytesMax = 4000;

void CheckError(const absl::Status& status) {
  const std::string message = Message(status);
  TRIVIUM_CHECK(!message.empty() && message.size() < kErrorBytesMax, "{} bytes of error",
                message.size());
  TRIVIUM_CHECK(net::IsUtf8(message), "an error that is not UTF-8");
}

template <typename Config>
void CheckPrinted(const Config& config) {
  const std::string yaml = config::ToYaml(config);
  Config again;
  const absl::Status status = config::ParseYamlInto(yaml, "printed", &again);
  TRIVIUM_CHECK(status.ok(), "{}\n{}", Message(status), yaml);
  TRIVIUM_CHECK(again.SerializeAsString() == config.SerializeAsString(),
                "reads back otherwise:\n{}", yaml);
}

template <typename Config, typename... Role>
void Fuzz(const std::string& text, Role... role) {
  Config config;
  absl::Status status = config::ParseYamlInto(text, "fuzz", &config);
  if (!status.ok()) return CheckError(status);
  CheckPrinted(config);
  status = config::Complete(&config, role...);
  if (!status.ok()) return CheckError(status);
  CheckPrinted(config);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  Fuzz<v1::RouterConfig>(text);
  Fuzz<v1::WorkerConfig>(text, "decode");
  return 0;
}
