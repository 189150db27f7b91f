#include "services/router/semantic_cache/entry_record.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "trivium/v1/cache.pb.h"

namespace trivium::router {
namespace {

constexpr double kLengthTolerance = 1e-3;

std::string BytesOf(const Hash128& hash) {
  std::string bytes(16, '\0');
  std::memcpy(bytes.data(), &hash.high, 8);
  std::memcpy(bytes.data() + 8, &hash.low, 8);
  return bytes;
}

absl::StatusOr<Hash128> HashFrom(const std::string& bytes) {
  if (bytes.size() != 16) return InvalidArgument("a hash of {} bytes", bytes.size());
  Hash128 hash;
  std::memcpy(&hash.high, bytes.data(), 8);
  std::memcpy(&hash.low, bytes.data() + 8, 8);
  return hash;
}

absl::StatusOr<std::vector<float>> VectorFrom(const std::string& bytes, int32_t dim) {
  std::vector<float> vector(bytes.size() / sizeof(float));
  if (bytes.empty()) return vector;
  if (bytes.size() != static_cast<size_t>(dim) * sizeof(float)) {
    return InvalidArgument("a vector of {} bytes", bytes.size());
  }
  std::memcpy(vector.data(), bytes.data(), bytes.size());
  double squares = 0;
  for (const float value : vector) squares += double{value} * value;
  // Written so that it refuses what is no number too.
  if (std::abs(squares - 1) < kLengthTolerance) return vector;
  return InvalidArgument("a vector that is not of length 1");
}

absl::StatusOr<GuardMarks> MarksFrom(const v1::CacheMarks& in) {
  GuardMarks marks{in.numbers(),       in.names(),     in.identifiers(),
                   in.turning_words(), in.negations(), {in.content().begin(), in.content().end()}};
  const bool is_sorted = std::is_sorted(marks.content.begin(), marks.content.end());
  if (is_sorted && marks.content.size() <= Reading::kContentMax) return marks;
  return InvalidArgument("marks of {} words", marks.content.size());
}

}  // namespace

uint64_t HashOf(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string WriteRecord(const EntryRecord& record, const std::string& epoch) {
  v1::CacheEntry out;
  out.set_epoch(epoch);
  out.set_tenant(record.question.tenant);
  out.set_category(record.category);
  out.set_scope(BytesOf(record.question.scope));
  out.set_exact(BytesOf(record.question.exact));
  out.set_created_unix_ms(record.created_ms);
  out.set_completion_tokens(record.completion_tokens);
  out.set_answer_bytes(record.answer_bytes);
  out.set_answer_hash(record.answer_hash);
  v1::CacheMarks& marks = *out.mutable_marks();
  marks.set_numbers(record.question.marks.numbers);
  marks.set_names(record.question.marks.names);
  marks.set_identifiers(record.question.marks.identifiers);
  marks.set_turning_words(record.question.marks.turning_words);
  marks.set_negations(record.question.marks.negations);
  for (const uint32_t stem : record.question.marks.content) marks.add_content(stem);
  out.set_vector(record.vector.data(), record.vector.size() * sizeof(float));
  return out.SerializeAsString();
}

absl::StatusOr<EntryRecord> ReadRecord(const std::string& bytes, const std::string& epoch,
                                       int32_t dim) {
  v1::CacheEntry in;
  if (bytes.empty() || !in.ParseFromString(bytes)) return InvalidArgument("no entry");
  if (in.epoch() != epoch) return FailedPrecondition("an entry of another epoch");
  EntryRecord record;
  record.question.tenant = in.tenant();
  record.category = in.category();
  ASSIGN_OR_RETURN(record.question.scope, HashFrom(in.scope()));
  ASSIGN_OR_RETURN(record.question.exact, HashFrom(in.exact()));
  ASSIGN_OR_RETURN(record.question.marks, MarksFrom(in.marks()));
  ASSIGN_OR_RETURN(record.vector, VectorFrom(in.vector(), dim));
  record.question.is_comparable = !record.vector.empty();
  record.created_ms = in.created_unix_ms();
  record.completion_tokens = in.completion_tokens();
  record.answer_bytes = in.answer_bytes();
  record.answer_hash = in.answer_hash();
  constexpr int64_t kAnswerBytesMax = int64_t{1} << 40;
  if (record.created_ms < 0 || record.completion_tokens < 0 || record.answer_bytes < 0 ||
      record.answer_bytes > kAnswerBytesMax) {
    return InvalidArgument("a number below 0, or too large");
  }
  return record;
}

}  // namespace trivium::router
