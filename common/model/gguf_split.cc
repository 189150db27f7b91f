#include "common/model/gguf_split.h"

namespace trivium::model {
namespace {

constexpr int64_t kMaxParts = 1024;
constexpr char kNumberKey[] = "split.no";
constexpr char kCountKey[] = "split.count";
constexpr char kTensorsKey[] = "split.tensors.count";

std::string Suffix(int64_t number, int64_t count) {
  return fmt::format("-{:05}-of-{:05}.gguf", number + 1, count);
}

}  // namespace

absl::StatusOr<SplitPlace> ReadSplitPlace(const GgufFile& file, const std::string& path) {
  SplitPlace place;
  if (!file.Has(kCountKey)) return place;
  ASSIGN_OR_RETURN(place.count, file.Int(kCountKey));
  if (place.count < 0 || place.count > kMaxParts) {
    return InvalidArgument("{}: {} is {}, not from 1 to {}", path, kCountKey, place.count,
                           kMaxParts);
  }
  if (place.count <= 1) return SplitPlace{};
  ASSIGN_OR_RETURN(place.number, file.Int(kNumberKey));
  ASSIGN_OR_RETURN(place.tensors, file.Int(kTensorsKey));
  if (place.number < 0 || place.number >= place.count) {
    return InvalidArgument("{}: {} is {} of {} parts", path, kNumberKey, place.number, place.count);
  }
  const std::string suffix = Suffix(place.number, place.count);
  if (!path.ends_with(suffix)) {
    return InvalidArgument("{}: this is part {} of {} of a split model, so its name must end in {}",
                           path, place.number + 1, place.count, suffix);
  }
  place.prefix = path.substr(0, path.size() - suffix.size());
  return place;
}

std::string PartPath(const SplitPlace& place, int64_t number) {
  return place.prefix + Suffix(number, place.count);
}

}  // namespace trivium::model
