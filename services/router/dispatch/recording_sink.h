// Test support: a client that keeps what it got and complains about every index that is not the
// next one, and about anything after the end. Thread-safety: all methods, any thread.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "services/router/dispatch/run_types.h"

namespace trivium::router {

class RecordingSink final : public ResponseSink {
 public:
  struct Choice {
    std::vector<int32_t> ids;
    std::string text;
  };
  struct Record : Choice {  // of the first choice
    std::map<int32_t, Choice> others;
    std::vector<v1::OutputToken> prompt;
    std::optional<v1::Done> done;
    std::optional<absl::Status> error;
    bool has_ended() const { return done.has_value() || error.has_value(); }
  };
  Record Get() const {
    std::lock_guard lock(mutex_);
    return record_;
  }
  bool has_ended() const {
    std::lock_guard lock(mutex_);
    return record_.has_ended();
  }

  void OnDelta(const v1::Delta& delta) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(record_.has_ended());
    Choice& choice = delta.choice() == 0 ? record_ : record_.others[delta.choice()];
    choice.text += delta.text();
    for (const v1::OutputToken& token : delta.prompt_tokens()) {
      EXPECT_TRUE(record_.ids.empty() && record_.others.empty())
          << "a token of the answer overtook the prompt";
      EXPECT_EQ(token.index(), static_cast<int32_t>(record_.prompt.size()));
      record_.prompt.push_back(token);
    }
    for (const v1::OutputToken& token : delta.tokens()) {
      EXPECT_EQ(token.index(), static_cast<int32_t>(choice.ids.size()));
      choice.ids.push_back(token.id());
    }
  }
  void OnDone(const v1::Done& done) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(record_.has_ended());
    record_.done = done;
  }
  void OnError(const absl::Status& status) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(record_.has_ended());
    EXPECT_FALSE(status.ok());
    EXPECT_FALSE(status.message().empty());
    record_.error = status;
  }

 private:
  mutable std::mutex mutex_;
  Record record_;
};

}  // namespace trivium::router
