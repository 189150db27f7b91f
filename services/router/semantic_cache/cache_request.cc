#include "services/router/semantic_cache/cache_request.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <iterator>

#include "common/kv/keyed_hash.h"

namespace trivium::router {
namespace {

constexpr char kPurpose[] = "trivium answers.";  // 16 characters, as BLAKE2b's personalisation is
static_assert(sizeof(kPurpose) == 17);

// Maps in one order.
std::string Bytes(const google::protobuf::Message& message) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::io::CodedOutputStream out(&stream);
  out.SetSerializationDeterministic(true);
  message.SerializeToCodedStream(&out);
  out.Trim();
  return bytes;
}

void AppendPart(std::string_view part, std::string* out) {
  const uint64_t size = part.size();
  out->append(reinterpret_cast<const char*>(&size), sizeof(size));
  out->append(part);
}

// Keyed with the tenant's own secret: who reads the store learns nothing by guessing texts, and no
// text of another tenant ever has the same hash.
Hash128 HashOf(const kv::DomainKey& key, const std::string& message) {
  thread_local kv::KeyedHash hash(kPurpose);
  const auto bytes =
      hash({reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size()}, message);
  Hash128 out;
  std::memcpy(&out.high, bytes.data(), 8);
  std::memcpy(&out.low, bytes.data() + 8, 8);
  return out;
}

// Runs of blanks inside a line as one, none at its end; lines and how far they are indented stay,
// since they may be code. A single line is indented from nothing.
std::string Normalised(std::string_view text) {
  std::string out;
  bool is_at_begin = true;
  if (text.find('\n') == std::string_view::npos) {
    text.remove_prefix(std::min(text.find_first_not_of(" \t\r"), text.size()));
  }
  for (const char c : text) {
    const bool is_blank = c == ' ' || c == '\t' || c == '\r';
    if (is_blank && !is_at_begin && out.back() == ' ') continue;
    if (c == '\n') {
      while (!out.empty() && (out.back() == ' ' || out.back() == '\t')) out.pop_back();
    }
    out += is_blank && !is_at_begin ? ' ' : c;
    is_at_begin = c == '\n' || (is_at_begin && is_blank);
  }
  out.erase(out.find_last_not_of(" \t\r\n") + 1);
  return out;
}

// What an answer depends on beside the prompt, complete, so that both doors say it alike; of the
// length it only matters that it fits, and a seed that was drawn says nothing.
std::string ClassOf(const v1::GenerateRequest& request, const RunRequest& run) {
  v1::StageSampling sampling = run.sampling;
  sampling.clear_max_tokens();
  if (!request.sampling().has_seed() || sampling.temperature() == 0) sampling.clear_seed();
  std::string out = Bytes(sampling);
  for (const std::string& stop : run.stop) AppendPart(stop, &out);
  return out;
}

bool WantsVariety(const v1::Sampling& sampling, float temperature_max) {
  return sampling.n() > 1 || sampling.has_logprobs() || sampling.has_prompt_logprobs() ||
         sampling.temperature() > temperature_max;
}

// The last turn, and what stands before it. False: not a question of a form that is kept.
bool Split(const v1::GenerateRequest& request, std::string* text, std::string* context) {
  if (request.prompt_case() == v1::GenerateRequest::kText) {
    *text = request.text();
    *context = "text";
    return !text->empty();
  }
  if (request.prompt_case() != v1::GenerateRequest::kChat) return false;
  for (const v1::Message& message : request.chat().messages()) {
    constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant"};
    if (std::find(std::begin(kRoles), std::end(kRoles), message.role()) == std::end(kRoles)) {
      return false;
    }
    if (!message.parts().empty()) return false;  // before pictures are copied
  }
  v1::Messages before = request.chat();
  if (before.messages_size() == 0) return false;
  v1::Message last = before.messages(before.messages_size() - 1);
  before.mutable_messages()->RemoveLast();
  *text = last.content();
  last.clear_content();
  *context = "chat";
  AppendPart(Bytes(before), context);
  AppendPart(Bytes(last), context);
  return last.role() == "user" && !text->empty();
}

}  // namespace

CacheRequest ReadCacheRequest(const v1::GenerateRequest& request, const RunRequest& run,
                              const std::string& epoch, const CacheRules& rules) {
  CacheRequest out;
  const v1::CacheHints& hints = request.cache();
  out.category = hints.category();
  out.may_keep = !hints.no_store();
  out.may_find = !hints.has_max_age_s() || hints.max_age_s() > 0;
  std::string context;
  if (!out.may_keep && !out.may_find) return out.bypass = Bypass::kAsked, out;
  if (run.kv_domains.empty()) return out.bypass = Bypass::kNotKept, out;
  if (!Split(request, &out.text, &context)) return out.bypass = Bypass::kForm, out;
  if (WantsVariety(request.sampling(), rules.temperature_max)) {
    return out.bypass = Bypass::kSampling, out;
  }
  if (out.text.size() > rules.text_bytes_max) return out.bypass = Bypass::kSize, out;
  Reading reading = ReadQuestion(out.text);
  if (reading.is_injection) return out.bypass = Bypass::kInstructions, out;
  if (reading.is_personal) return out.bypass = Bypass::kPersonal, out;

  std::string scope;
  for (const std::string& part : {epoch, run.tenant.value, context, ClassOf(request, run)}) {
    AppendPart(part, &scope);
  }
  const kv::DomainKey& key = run.kv_domains.back().key;
  out.question.tenant = run.tenant.value;
  out.question.scope = HashOf(key, scope);
  // What is to be continued goes on otherwise behind another blank.
  const bool is_raw = request.prompt_case() == v1::GenerateRequest::kText;
  AppendPart(is_raw ? out.text : Normalised(out.text), &scope);
  out.question.exact = HashOf(key, scope);
  out.question.marks = std::move(reading.marks);
  out.question.is_comparable =
      !reading.has_too_many &&
      !(is_raw && std::isspace(static_cast<unsigned char>(out.text.back())) != 0);
  out.question.tokens_max = run.sampling.max_tokens();
  if (hints.has_max_age_s()) out.question.age_max_ms = int64_t{hints.max_age_s()} * 1000;
  return out;
}

bool MayKeep(const v1::Done& done) { return done.finish_reason() == "stop"; }

const char* Name(Bypass bypass) {
  constexpr const char* kNames[] = {"none",     "asked",    "not_kept",     "form",
                                    "sampling", "personal", "instructions", "size"};
  return kNames[static_cast<size_t>(bypass)];
}

}  // namespace trivium::router
