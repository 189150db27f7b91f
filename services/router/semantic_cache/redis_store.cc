#include <hiredis/hiredis.h>

#include <chrono>
#include <csignal>
#include <mutex>
#include <random>
#include <utility>

#include "common/base/clock.h"
#include "services/router/semantic_cache/document_store.h"

namespace trivium::router {
namespace {

constexpr Duration kAway = std::chrono::seconds(1);  // so long a server that failed is not asked

struct FreeReply {
  void operator()(redisReply* reply) const { freeReplyObject(reply); }
};
struct FreeContext {
  void operator()(redisContext* context) const { redisFree(context); }
};
using Reply = std::unique_ptr<redisReply, FreeReply>;

bool IsBytes(const redisReply* reply) { return reply->type == REDIS_REPLY_STRING; }
std::string BytesOf(const redisReply* reply) {
  return {reply->str, static_cast<size_t>(reply->len)};
}

// Puts an answer, numbers it and sets the store's life where there is none: in one command, so that
// no reader passes a number that is not there yet.
// KEYS: answer, order, last, life. ARGV: key, entry, answer, time to live (ms), a life.
constexpr char kPut[] =
    "redis.call('HSET', KEYS[1], 'entry', ARGV[2], 'answer', ARGV[3]) "
    "redis.call('PEXPIRE', KEYS[1], ARGV[4]) "
    "redis.call('SETNX', KEYS[4], ARGV[5]) "
    "return redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[1])";

std::string DrawLife() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
}

// An answer is the hash PREFIX:a:KEY; PREFIX:order is a sorted set of the keys by the number that
// PREFIX:last gave them. PREFIX:life is another one where the server lost what it had, so that
// numbers begin anew. A cursor is LIFE/NUMBER.
class RedisStore final : public DocumentStore {
 public:
  RedisStore(const std::string& address, std::string prefix, Duration timeout)
      : prefix_(std::move(prefix)),
        timeout_{timeout / std::chrono::seconds(1),
                 timeout % std::chrono::seconds(1) / std::chrono::microseconds(1)} {
    const size_t colon = address.rfind(':');
    host_ = address.substr(0, colon);
    if (host_.size() > 2 && host_.front() == '[') host_ = host_.substr(1, host_.size() - 2);
    port_ = std::atoi(address.c_str() + colon + 1);
  }

  absl::Status Put(const StoredEntry& entry, const std::string& answer, int64_t ttl_ms) override {
    std::lock_guard lock(mutex_);
    return Ask({"EVAL", kPut, "4", NameOf(entry.key), prefix_ + ":order", prefix_ + ":last",
                prefix_ + ":life", entry.key, entry.entry, answer, std::to_string(ttl_ms),
                DrawLife()},
               REDIS_REPLY_INTEGER)
        .status();
  }

  absl::StatusOr<std::string> Answer(const std::string& key) override {
    std::lock_guard lock(mutex_);
    ASSIGN_OR_RETURN(const Reply reply, Ask({"HGET", NameOf(key), "answer"}, REDIS_REPLY_STRING));
    if (reply->type == REDIS_REPLY_NIL) return absl::NotFoundError("no such answer");
    return BytesOf(reply.get());
  }

  absl::Status Delete(std::span<const std::string> keys) override {
    std::lock_guard lock(mutex_);
    for (const std::string& key : keys) {
      RETURN_IF_ERROR(Ask({"DEL", NameOf(key)}, REDIS_REPLY_INTEGER).status());
      RETURN_IF_ERROR(Ask({"ZREM", prefix_ + ":order", key}, REDIS_REPLY_INTEGER).status());
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<StoredEntry>> After(std::string* cursor) override {
    std::lock_guard lock(mutex_);
    ASSIGN_OR_RETURN(std::string at, Resume(*cursor));
    const size_t slash = at.find('/');
    const std::string from =
        slash + 1 == at.size() ? "-inf" : fmt::format("({}", at.substr(slash + 1));
    ASSIGN_OR_RETURN(const Reply reply, Ask({"ZRANGEBYSCORE", prefix_ + ":order", from, "+inf",
                                             "WITHSCORES", "LIMIT", "0", std::to_string(kPageMax)},
                                            REDIS_REPLY_ARRAY));
    std::vector<StoredEntry> entries;
    for (size_t i = 0; i + 1 < reply->elements; i += 2) {
      if (!IsBytes(reply->element[i]) || !IsBytes(reply->element[i + 1])) continue;
      const std::string key = BytesOf(reply->element[i]);
      ASSIGN_OR_RETURN(const Reply entry, Ask({"HGET", NameOf(key), "entry"}, REDIS_REPLY_STRING));
      if (IsBytes(entry.get())) {
        entries.push_back({key, BytesOf(entry.get())});
      } else {  // its time has passed
        RETURN_IF_ERROR(Ask({"ZREM", prefix_ + ":order", key}, REDIS_REPLY_INTEGER).status());
        entries.push_back({key, ""});
      }
      at = at.substr(0, slash + 1) + BytesOf(reply->element[i + 1]);
    }
    *cursor = at;
    return entries;
  }

  bool is_shared() const override { return true; }

 private:
  std::string NameOf(const std::string& key) const { return fmt::format("{}:a:{}", prefix_, key); }

  // Where to read on: at the beginning where the server has begun anew, or has fewer answers than
  // were read (it came back from an older copy of itself).
  absl::StatusOr<std::string> Resume(const std::string& cursor) {
    ASSIGN_OR_RETURN(const Reply life, Ask({"GET", prefix_ + ":life"}, REDIS_REPLY_STRING));
    ASSIGN_OR_RETURN(const Reply last, Ask({"GET", prefix_ + ":last"}, REDIS_REPLY_STRING));
    const std::string begin = (IsBytes(life.get()) ? BytesOf(life.get()) : "") + "/";
    if (!cursor.starts_with(begin)) return begin;
    const int64_t read = std::atoll(cursor.c_str() + begin.size());
    const int64_t given = IsBytes(last.get()) ? std::atoll(last->str) : 0;
    return given < read ? begin : cursor;
  }

  absl::Status Connect() {
    if (context_ != nullptr) return absl::OkStatus();
    if (Clock::Real().Now() < away_until_) return Unavailable("the document store is away");
    context_.reset(redisConnectWithTimeout(host_.c_str(), port_, timeout_));
    if (context_ != nullptr && context_->err == 0 &&
        redisSetTimeout(context_.get(), timeout_) == REDIS_OK) {
      return absl::OkStatus();
    }
    return Lost();
  }

  absl::Status Lost() {
    const std::string why = context_ == nullptr ? "no memory" : context_->errstr;
    context_ = nullptr;
    away_until_ = Clock::Real().Now() + kAway;
    return Unavailable("the document store does not answer: {}", why);
  }

  // A reply of type `type` or nil. A connection that failed within a reply is not used again.
  absl::StatusOr<Reply> Ask(const std::vector<std::string>& command, int type) {
    RETURN_IF_ERROR(Connect());
    std::vector<const char*> parts;
    std::vector<size_t> sizes;
    for (const std::string& part : command) {
      parts.push_back(part.data());
      sizes.push_back(part.size());
    }
    Reply reply(static_cast<redisReply*>(redisCommandArgv(
        context_.get(), static_cast<int>(parts.size()), parts.data(), sizes.data())));
    if (reply == nullptr) return Lost();
    if (reply->type == type || reply->type == REDIS_REPLY_NIL) return reply;
    if (reply->type != REDIS_REPLY_ERROR) return Unavailable("the document store's reply is odd");
    return Unavailable("the document store says: {}", BytesOf(reply.get()));
  }

  const std::string prefix_;
  const timeval timeout_;
  std::string host_;
  int port_ = 0;
  std::mutex mutex_;
  std::unique_ptr<redisContext, FreeContext> context_;
  TimePoint away_until_{};
};

}  // namespace

std::unique_ptr<DocumentStore> MakeRedisStore(const std::string& address, const std::string& prefix,
                                              Duration timeout) {
  std::signal(SIGPIPE, SIG_IGN);  // hiredis writes to connections that may have gone
  return std::make_unique<RedisStore>(address, prefix, timeout);
}

}  // namespace trivium::router
