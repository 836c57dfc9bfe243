#include "router/service/leader_names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <utility>

#include "base/status.h"

namespace facet::testing {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Addresses = std::vector<std::string>;

TEST(LeaderNames, TellsLiteralAddressesFromNames) {
  for (const char* literal : {"unix:/run/x.sock", "10.0.0.5:8480", "[::1]:8480", "[fe80::1%2]:1"}) {
    EXPECT_TRUE(IsLiteralAddress(literal)) << literal;
  }
  for (const char* name : {"localhost:8480", "dns:10.0.0.5:8480", "leaders.facet.svc:1", "a:1"}) {
    EXPECT_FALSE(IsLiteralAddress(name)) << name;
  }
}

TEST(LeaderNames, TheSystemKnowsLocalhost) {
  const auto addresses = ResolveBySystem("localhost", "8480");
  ASSERT_TRUE(addresses.ok()) << addresses.status();
  ASSERT_EQ(addresses->size(), 1u);
  EXPECT_THAT((Addresses{"127.0.0.1:8480", "[::1]:8480"}), Contains((*addresses)[0]));
  // Longer than a part of a name may be: nobody is asked for it.
  EXPECT_FALSE(ResolveBySystem(std::string(64, 'x'), "1").ok());
}

TEST(LeaderNames, LiteralsAreKnownAtOnceAndInTheirOrder) {
  Addresses told;
  const LeaderNames names({.leaders = {"unix:/b", "unix:/a"}}, ResolveBySystem,
                          [&told](Addresses addresses) { told = std::move(addresses); });
  EXPECT_THAT(told, ElementsAre("unix:/b", "unix:/a"));
}

// Answers that change from look to look.
class ScriptedNames {
 public:
  void Set(const std::string& name, absl::StatusOr<Addresses> answer) {
    absl::MutexLock lock(&mutex_);
    answers_.insert_or_assign(name, std::move(answer));
  }
  ResolveName resolve() {
    return [this](const std::string& name, const std::string& port) -> absl::StatusOr<Addresses> {
      absl::MutexLock lock(&mutex_);
      ++looks_;
      auto answer = answers_.at(name);
      if (answer.ok()) {
        for (std::string& address : *answer) address += ":" + port;
      }
      return answer;
    };
  }
  std::function<void(Addresses)> listener() {
    return [this](Addresses addresses) {
      absl::MutexLock lock(&mutex_);
      told_.push_back(std::move(addresses));
    };
  }
  bool AwaitTold(const Addresses& addresses) {
    absl::MutexLock lock(&mutex_);
    const auto is_told = [&]() { return !told_.empty() && told_.back() == addresses; };
    return mutex_.AwaitWithTimeout(absl::Condition(&is_told), absl::Seconds(20));
  }
  bool AwaitLooks(int more) {
    absl::MutexLock lock(&mutex_);
    const int wanted = looks_ + more;
    const auto done = [&]() { return looks_ >= wanted; };
    return mutex_.AwaitWithTimeout(absl::Condition(&done), absl::Seconds(20));
  }
  size_t times_told() {
    absl::MutexLock lock(&mutex_);
    return told_.size();
  }

 private:
  absl::Mutex mutex_;
  std::map<std::string, absl::StatusOr<Addresses>> answers_;
  std::vector<Addresses> told_;
  int looks_ = 0;
};

TEST(LeaderNames, FollowsWhatNamesResolveTo) {
  ScriptedNames script;
  script.Set("x", Addresses{"10.0.0.2", "10.0.0.1"});
  const LeaderNames names(
      {.leaders = {"dns:x:80", "10.0.0.9:80"}, .interval = std::chrono::milliseconds(1)},
      script.resolve(), script.listener());
  EXPECT_TRUE(script.AwaitTold({"10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:80"}));
  script.Set("x", Addresses{"10.0.0.3"});
  EXPECT_TRUE(script.AwaitTold({"10.0.0.3:80", "10.0.0.9:80"}));
  // A name that cannot be resolved keeps what it had, and nobody is told twice.
  const size_t times = script.times_told();
  script.Set("x", Unavailable("no answer"));
  EXPECT_TRUE(script.AwaitLooks(3));
  EXPECT_EQ(script.times_told(), times);
}

TEST(LeaderNames, TakesNoMoreThanItMay) {
  ScriptedNames script;
  script.Set("x", Addresses{"10.0.0.2", "10.0.0.1", "10.0.0.3"});
  const LeaderNames names({.leaders = {"x:80"}, .leaders_max = 2}, script.resolve(),
                          script.listener());
  EXPECT_TRUE(script.AwaitTold({"10.0.0.1:80", "10.0.0.2:80"}));
}

}  // namespace
}  // namespace facet::testing
