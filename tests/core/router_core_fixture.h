#ifndef FACET_TESTS_CORE_ROUTER_CORE_FIXTURE_H_
#define FACET_TESTS_CORE_ROUTER_CORE_FIXTURE_H_

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "router/core/router_core.h"

namespace facet {

inline constexpr TimeUs kSecond = 1'000'000;

inline RouterRequest RequestOf(std::string client_id, int prompt_tokens = 3, int max_tokens = 8) {
  RouterRequest request;
  request.client_id = std::move(client_id);
  request.prompts = {{std::vector<TokenId>(prompt_tokens, 7), max_tokens}};
  request.seed = 42;
  return request;
}

inline LeaderDelta Tokens(SequenceId sequence, int offset, const std::vector<TokenId>& ids) {
  LeaderDelta delta{.sequence = sequence, .offset = offset};
  for (const TokenId id : ids) delta.tokens.push_back({.id = id});
  return delta;
}

inline LeaderDelta FinishOf(SequenceId sequence, int offset, EndReason reason) {
  return {.sequence = sequence, .offset = offset, .finish = reason};
}

inline std::vector<TokenId> IdsOf(const ChoiceDelta& delta) {
  std::vector<TokenId> ids;
  for (const OutputToken& token : delta.tokens) ids.push_back(token.id);
  return ids;
}

// A core with two groups that are down.
class RouterCoreTest : public ::testing::Test {
 protected:
  RouterCoreTest() { Reset({}); }
  void TearDown() override { EXPECT_TRUE(core_->Check().ok()) << core_->Check(); }

  void Reset(const RouterCoreOptions& options) {
    core_ = std::make_unique<RouterCore>(options, 0);
    a_ = core_->AddGroup();
    b_ = core_->AddGroup();
  }
  void Up(GroupId group, int64_t credit = 1000, const std::string& fingerprint = "f",
          int context = 100) {
    core_->OnGroupUp(group, {.fingerprint = fingerprint, .context_tokens = context});
    core_->OnGroupState(group, {.credit_tokens = credit}, now_);
  }
  RequestId MustSubmit(RouterRequest request) {
    const auto id = core_->Submit(std::move(request), now_);
    EXPECT_TRUE(id.ok()) << id.status();
    return id.value_or(RequestId{});
  }
  // The one submit that the last event caused.
  SubmitAction TheSubmit() {
    CoreActions actions = core_->TakeActions();
    EXPECT_EQ(actions.submits.size(), 1u);
    return actions.submits.empty() ? SubmitAction{} : actions.submits.front();
  }
  ChoiceDelta TheDelta() {
    CoreActions actions = core_->TakeActions();
    EXPECT_EQ(actions.deltas.size(), 1u);
    return actions.deltas.empty() ? ChoiceDelta{} : actions.deltas.front();
  }

  std::unique_ptr<RouterCore> core_;
  GroupId a_, b_;
  TimeUs now_ = 0;
};

}  // namespace facet

#endif  // FACET_TESTS_CORE_ROUTER_CORE_FIXTURE_H_
