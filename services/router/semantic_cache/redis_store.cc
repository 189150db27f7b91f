#include <hiredis/hiredis.h>

#include <chrono>
#include <csignal>
#include <mutex>
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

// An answer is the hash PREFIX:a:KEY; PREFIX:order is a sorted set of the keys by the number that
// PREFIX:last gave them.
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
    ASSIGN_OR_RETURN(const Reply number, Ask({"INCR", prefix_ + ":last"}, REDIS_REPLY_INTEGER));
    const std::string name = NameOf(entry.key);
    RETURN_IF_ERROR(
        Ask({"HSET", name, "entry", entry.entry, "answer", answer}, REDIS_REPLY_INTEGER).status());
    RETURN_IF_ERROR(Ask({"PEXPIRE", name, std::to_string(ttl_ms)}, REDIS_REPLY_INTEGER).status());
    // Last: who reads the order finds what it names.
    return Ask({"ZADD", prefix_ + ":order", std::to_string(number->integer), entry.key},
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
    const std::string from = cursor->empty() ? "-inf" : fmt::format("({}", *cursor);
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
      *cursor = BytesOf(reply->element[i + 1]);
    }
    return entries;
  }

  bool is_shared() const override { return true; }

 private:
  std::string NameOf(const std::string& key) const { return fmt::format("{}:a:{}", prefix_, key); }

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
