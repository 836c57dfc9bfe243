#include "router/service/serial_thread.h"

#include <grpcpp/alarm.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"

namespace facet::testing {
namespace {

TEST(SerialThread, RunsEveryTaskOnceThoughItSleepsInBetween) {
  constexpr int kThreads = 4, kTasks = 2000;
  std::vector<int> next(kThreads);
  int turns = 0, runs = 0;
  {
    SerialThread thread([&] {
      ++turns;
      return kNever;
    });
    std::vector<std::thread> posters;
    for (int poster = 0; poster < kThreads; ++poster) {
      posters.emplace_back([&, poster] {
        for (int i = 0; i < kTasks; ++i) {
          absl::Notification ran;
          thread.Post([&, i] {
            EXPECT_EQ(next[poster]++, i);
            ++runs;
            ran.Notify();
          });
          if (i % 2 == 1) thread.Post([] {});
          ran.WaitForNotification();  // for ever, if a wake-up is lost
        }
      });
    }
    for (std::thread& poster : posters) poster.join();
  }
  EXPECT_EQ(runs, kThreads * kTasks);
  EXPECT_GT(turns, 0);
}

TEST(SerialThread, WhatIsPostedBeforeItEndsIsRun) {
  for (int round = 0; round < 200; ++round) {
    int runs = 0;
    {
      SerialThread thread([] { return kNever; });
      thread.Post([&] {
        ++runs;
        thread.Post([&] { ++runs; });
      });
    }
    EXPECT_EQ(runs, 2);
  }
}

TEST(SerialThread, TakesATurnWhenTheLastOneAskedForIt) {
  absl::Notification done;
  std::vector<TimeUs> early;  // by how much
  TimeUs due = 0;
  int turns = 0;
  SerialThread thread([&] {
    const TimeUs now = MonotonicNow();
    if (now < due) early.push_back(due - now);
    if (++turns == 5) done.Notify();
    return due = turns < 5 ? now + 2'500 : kNever;
  });
  thread.Post([] {});
  done.WaitForNotification();
  EXPECT_TRUE(early.empty());
}

TEST(SerialThread, RefusesATaskIfTooManyWait) {
  absl::Notification entered, release;
  std::atomic<bool> ran = false;
  SerialThread thread([] { return kNever; });
  thread.Post([&] {
    entered.Notify();
    release.WaitForNotification();
  });
  entered.WaitForNotification();
  EXPECT_TRUE(thread.TryPost([] {}, 1));
  EXPECT_FALSE(thread.TryPost([&] { ran = true; }, 1));
  release.Notify();
  absl::Notification last;
  thread.Post([&] { last.Notify(); });
  last.WaitForNotification();
  EXPECT_FALSE(ran);
}

// Counts what it hears, and on which thread.
class Bell : public QueueEvent {
 public:
  explicit Bell(bool wants_turn) : wants_turn_(wants_turn) {}
  bool OnEvent(bool ok) override {
    EXPECT_TRUE(ok);
    thread_ = std::this_thread::get_id();
    rung_.Notify();
    return wants_turn_;
  }
  std::thread::id Wait() {
    rung_.WaitForNotification();
    return thread_;
  }

 private:
  const bool wants_turn_;
  std::thread::id thread_;
  absl::Notification rung_;
};

TEST(SerialThread, EventsRunOnItAndBringTheTurnsTheyAskFor) {
  int turns = 0;
  SerialThread thread([&] {
    ++turns;
    return kNever;
  });
  const auto ask = [&thread](auto question) {
    absl::Notification answered;
    thread.Post([&] {
      question();
      answered.Notify();
    });
    answered.WaitForNotification();
  };
  std::thread::id core;
  ask([&] { core = std::this_thread::get_id(); });
  // A turn follows each question: the count that the next one sees says what came in between.
  int before = 0, after = 0;
  for (const bool wants_turn : {false, true}) {
    ask([&] { before = turns; });
    Bell bell(wants_turn);
    grpc::Alarm alarm;
    alarm.Set(&thread.queue(), std::chrono::system_clock::now(), static_cast<QueueEvent*>(&bell));
    EXPECT_EQ(bell.Wait(), core);
    ask([&] { after = turns; });
    EXPECT_EQ(after - before, wants_turn ? 2 : 1);
  }
}

}  // namespace
}  // namespace facet::testing
