// Leaders that come and go with the names that stand for them.

#include <gmock/gmock.h>

#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "tests/services/router_fixture.h"

namespace facet::testing {
namespace {

class RouterLeaders : public RouterFixture {
 protected:
  RouterLeaders() {
    options_.dispatcher.leaders.leaders = {"leaders:1"};
    options_.dispatcher.leaders.interval = std::chrono::milliseconds(1);
    options_.dispatcher.resolve = [this](const std::string&, const std::string&) {
      absl::MutexLock lock(&mutex_);
      return absl::StatusOr<std::vector<std::string>>(addresses_);
    };
  }
  ~RouterLeaders() override { router_.reset(); }  // before what it resolves by

  // What the name stands for from now on.
  void Resolve(std::vector<std::string> addresses) {
    absl::MutexLock lock(&mutex_);
    addresses_ = std::move(addresses);
  }
  FakeLeader& RunLeader(int index) {
    leaders_.push_back(std::make_unique<FakeLeader>(
        FakeLeader::Options{.address = LeaderAddress(index), .model = info_, .script = Letters()}));
    return *leaders_.back();
  }
  void StartWith(std::vector<std::string> addresses) {
    Resolve(std::move(addresses));
    Start();
  }
  bool WaitForGroups(std::vector<std::string> addresses) {
    return WaitForStatus([&addresses](const v1::GetStatusResponse& status) {
      std::vector<std::string> ready;
      for (const v1::GroupStatus& group : status.groups()) {
        if (group.ready()) ready.push_back(group.address());
      }
      std::sort(ready.begin(), ready.end());
      return ready == addresses && status.groups_size() == std::ssize(addresses);
    });
  }

  absl::Mutex mutex_;
  std::vector<std::string> addresses_ ABSL_GUARDED_BY(mutex_);
};

TEST_F(RouterLeaders, ANewAddressIsANewGroup) {
  RunLeader(0);
  StartWith({LeaderAddress(0)});
  EXPECT_TRUE(WaitForGroups({LeaderAddress(0)}));
  RunLeader(1);
  Resolve({LeaderAddress(0), LeaderAddress(1)});
  EXPECT_TRUE(WaitForGroups({LeaderAddress(0), LeaderAddress(1)}));
}

TEST_F(RouterLeaders, AGroupThatIsGoneFromTheNameStaysUntilItEnds) {
  FakeLeader& leader = RunLeader(0);
  leader.HoldAt(3);
  StartWith({LeaderAddress(0)});
  v1::GenerateRequest request = TextRequest();
  request.set_max_tokens(8);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  EXPECT_TRUE(leader.WaitForSubmits(1));
  RunLeader(1);
  Resolve({LeaderAddress(1)});
  EXPECT_TRUE(WaitForGroups({LeaderAddress(0), LeaderAddress(1)}));
  leader.Release();
  v1::GenerateResponse response;
  Answer answer;
  while (reader->Read(&response)) answer.Add(response);
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(Only(answer).text, LettersOf(SequenceSeed(7, 0, 0), 8));
  leader.Kill();
  EXPECT_TRUE(WaitForGroups({LeaderAddress(1)}));
}

TEST_F(RouterLeaders, AnAddressThatComesBackIsUsedAgain) {
  FakeLeader& leader = RunLeader(0);
  StartWith({LeaderAddress(0)});
  RunLeader(1);
  for (int round = 0; round < 3; ++round) {
    Resolve({LeaderAddress(1)});
    leader.Kill();
    EXPECT_TRUE(WaitForGroups({LeaderAddress(1)}));
    leader.Start();
    Resolve({LeaderAddress(0), LeaderAddress(1)});
    EXPECT_TRUE(WaitForGroups({LeaderAddress(0), LeaderAddress(1)}));
  }
  v1::GenerateRequest request = TextRequest();
  request.set_max_tokens(4);
  request.set_n(4);
  Answer answer;
  EXPECT_TRUE(Generate(request, &answer).ok());
}

TEST_F(RouterLeaders, ARouterWhoseLeadersHaveNoAddressYetMoves) {
  options_.dispatcher.resolve = [](const std::string& name, const std::string&) {
    return absl::StatusOr<std::vector<std::string>>(Unavailable("{}: not known", name));
  };
  router_ = StartRouter();
  // Nobody calls it: a call would be a reason to move.
  std::chrono::milliseconds age(0), oldest(0);
  for (; age >= oldest; age = router_->Age()) {
    ASSERT_LT(age, std::chrono::minutes(1));
    oldest = age;
    std::this_thread::yield();
  }
}

TEST_F(RouterLeaders, ALeaderThatNeverAnsweredIsForgotten) {
  RunLeader(0);
  StartWith({LeaderAddress(0), LeaderAddress(7)});
  Resolve({LeaderAddress(0)});
  EXPECT_TRUE(WaitForGroups({LeaderAddress(0)}));
}

}  // namespace
}  // namespace facet::testing
