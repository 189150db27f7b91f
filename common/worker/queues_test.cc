// Outbox, Mailbox and Admission under contention.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "common/worker/admission.h"
#include "common/worker/mailbox.h"
#include "common/worker/outbox.h"

namespace trivium::worker {
namespace {

using Next = Outbox<int>::Next;

TEST(OutboxTest, WritesOneAtATimeAndFinishesLast) {
  Outbox<int> outbox;
  EXPECT_TRUE(outbox.idle());
  EXPECT_EQ(outbox.Push(1), Next::kWrite);
  EXPECT_EQ(outbox.current(), 1);
  EXPECT_EQ(outbox.Push(2), Next::kNothing);
  EXPECT_EQ(outbox.Close(absl::CancelledError("x")), Next::kNothing);
  EXPECT_EQ(outbox.Push(3), Next::kNothing) << "closed";
  EXPECT_EQ(outbox.Close(absl::OkStatus()), Next::kNothing);
  EXPECT_EQ(outbox.WriteDone(true), Next::kWrite);
  EXPECT_EQ(outbox.current(), 2);
  EXPECT_EQ(outbox.WriteDone(true), Next::kFinish);
  EXPECT_TRUE(absl::IsCancelled(outbox.TakeStatus())) << "the first status counts";
}

TEST(OutboxTest, AFailedWriteDropsTheRestButStillFinishes) {
  Outbox<int> outbox;
  EXPECT_EQ(outbox.Push(1), Next::kWrite);
  EXPECT_EQ(outbox.Push(2), Next::kNothing);
  EXPECT_EQ(outbox.WriteDone(false), Next::kNothing);
  EXPECT_EQ(outbox.Push(3), Next::kNothing);
  EXPECT_EQ(outbox.Close(absl::OkStatus()), Next::kFinish);
}

// A producer and a writer on two threads: every event once, in order, then one finish.
TEST(OutboxTest, KeepsOrderBetweenThreads) {
  constexpr int kEvents = 20000;
  Outbox<int> outbox;
  Mailbox<int> writes;  // 1: a write was begun
  std::vector<int> written;
  std::atomic<int> finishes{0};
  const auto act = [&](Next next) {
    if (next == Next::kWrite) {
      written.push_back(outbox.current());
      writes.Post(1);
    }
    if (next == Next::kFinish) {
      ++finishes;
      writes.Close();
    }
  };
  std::thread writer([&] {
    while (!writes.closed()) {
      for ([[maybe_unused]] int write : writes.Take(std::nullopt)) act(outbox.WriteDone(true));
    }
  });
  for (int i = 0; i < kEvents; ++i) act(outbox.Push(i));
  act(outbox.Close(absl::OkStatus()));
  writer.join();
  EXPECT_EQ(finishes, 1);
  ASSERT_EQ(written.size(), static_cast<size_t>(kEvents));
  for (int i = 0; i < kEvents; ++i) ASSERT_EQ(written[static_cast<size_t>(i)], i);
}

TEST(MailboxTest, GivesEveryCommandOnceInOrderOfEachPoster) {
  constexpr int kPosters = 4, kCommands = 5000;
  Mailbox<std::pair<int, int>> mailbox;
  std::vector<std::thread> posters;
  for (int p = 0; p < kPosters; ++p) {
    posters.emplace_back([&mailbox, p] {
      for (int i = 0; i < kCommands; ++i) EXPECT_TRUE(mailbox.Post({p, i}));
    });
  }
  std::vector<int> next(kPosters, 0);
  for (int taken = 0; taken < kPosters * kCommands;) {
    for (const auto& [poster, i] : mailbox.Take(std::nullopt)) {
      EXPECT_EQ(next[static_cast<size_t>(poster)]++, i);
      ++taken;
    }
  }
  for (std::thread& poster : posters) poster.join();
  mailbox.Close();
  EXPECT_FALSE(mailbox.Post({0, 0}));
  EXPECT_TRUE(mailbox.Take(std::nullopt).empty());
}

TEST(AdmissionTest, NeverAdmitsMoreThanItMay) {
  Admission admission(3);
  std::atomic<int> inside{0}, admitted{0}, refused{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        const absl::Status status = admission.Enter();
        if (!status.ok()) {
          EXPECT_TRUE(absl::IsResourceExhausted(status));
          ++refused;
          continue;
        }
        EXPECT_LE(++inside, 3);
        ++admitted;
        --inside;
        admission.Leave();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(admission.requests(), 0);
  EXPECT_EQ(admission.refused(), refused);
  EXPECT_EQ(admitted + refused, 16000);
  admission.Drain();
  EXPECT_TRUE(absl::IsUnavailable(admission.Enter()));
}

TEST(AdmissionTest, ARequestTakesAPlaceForEachOfItsSequences) {
  Admission admission(3);
  EXPECT_TRUE(absl::IsInvalidArgument(admission.Enter(4)));
  ASSERT_TRUE(admission.Enter(2).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(admission.Enter(2)));
  admission.Leave();
  EXPECT_TRUE(admission.Enter(2).ok());
  EXPECT_EQ(admission.requests(), 3);
  admission.Leave(3);
  EXPECT_EQ(admission.refused(), 2);
}

}  // namespace
}  // namespace trivium::worker
