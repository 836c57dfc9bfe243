// What proposals do to steps and blocks. That they change no token is in everything that is
// compared with a naive loop, here and in engine_random_test.

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/engine/engine_group.h"

namespace facet::testing {
namespace {

// Proposes all it can, however unlikely it is.
EngineOptions Eager() {
  EngineOptions options = SmallOptions();
  options.blocks = {100, 100};
  options.context_tokens = 120;
  options.steps_max = 1;
  options.speculation.proposals_max = 6;
  options.speculation.step_rows_max = 16;
  options.speculation.free_rows = 1e9;
  return options;
}

EngineOptions Off(EngineOptions options) {
  options.speculation.proposals_max = 0;
  return options;
}

int64_t StepsOf(const EngineOptions& options, const std::vector<EngineRequest>& requests) {
  EngineGroup group(options);
  for (const EngineRequest& request : requests) group.Submit(request);
  int64_t steps = 0;
  while (group.Step()) ++steps;
  group.RunAll();
  return steps;
}

TEST(Speculation, RepetitionTakesFewerSteps) {
  const std::vector<EngineRequest> requests = {Request(1, 8, 80)};
  EXPECT_EQ(StepsOf(Off(Eager()), requests), 80);
  EXPECT_LT(StepsOf(Eager(), requests), 60);
}

TEST(Speculation, CountsWhatItProposedAndWhatWasRight) {
  EngineGroup group(Eager());
  group.Submit(Request(1, 8, 80));
  int64_t proposed = 0, steps = 0;
  while (const std::optional<StepPlan> plan = group.Step()) {
    proposed += plan->segments[0].proposals;
    ++steps;
  }
  const EngineStats stats = group.engine.stats();
  EXPECT_EQ(stats.proposed_tokens, proposed);
  EXPECT_EQ(stats.accepted_tokens, 80 - steps);
  EXPECT_LT(stats.accepted_tokens, stats.proposed_tokens);
}

// The step of the token before finds it, and what follows it is not wanted.
TEST(Speculation, ProposalsStopShortOfAStopToken) {
  EngineGroup free(Eager());
  free.Submit(Request(1, 8, 80));
  free.RunAll();
  const std::vector<TokenId> whole = free.outputs[1];
  int ends = 0;
  for (const TokenId stop : std::vector<TokenId>(whole.begin(), whole.begin() + 30)) {
    EngineGroup group(Eager());
    EngineRequest request = Request(1, 8, 80);
    request.stop_token_ids = {stop};
    group.Submit(request);
    while (const std::optional<StepPlan> plan = group.Step()) {
      const std::vector<TokenId>& tokens = plan->segments[0].tokens;
      EXPECT_EQ(std::count(tokens.end() - plan->segments[0].proposals, tokens.end(), stop), 0);
    }
    const auto end = std::find(whole.begin(), whole.end(), stop) + 1;
    EXPECT_EQ(group.outputs[1], std::vector<TokenId>(whole.begin(), end));
    EXPECT_EQ(group.End(1)->finish, EngineFinish::kStopToken);
    ends += group.engine.stats().proposed_tokens > 0;
  }
  EXPECT_GT(ends, 0);
}

TEST(Speculation, NeverBeyondMaxTokensOrTheContext) {
  for (const int max_tokens : {30, 31, 32, 33, 500}) {
    EngineGroup group(Eager());
    group.Submit(Request(1, 60, max_tokens));
    const int64_t end = std::min(60 + max_tokens, group.options.context_tokens);
    while (const std::optional<StepPlan> plan = group.Step()) {
      const Segment& segment = plan->segments[0];
      // The last token is chosen and not computed.
      EXPECT_LT(segment.first_position + std::ssize(segment.tokens), end);
    }
    EXPECT_EQ(std::ssize(group.outputs[1]), end - 60);
    EXPECT_EQ(group.outputs[1], Oracle(group.requests[1], group.options));
  }
}

TEST(Speculation, StepsHaveABoundOverAllSequences) {
  EngineOptions options = Eager();
  options.speculation.step_rows_max = 7;
  EngineGroup group(options);
  for (uint64_t id = 1; id <= 4; ++id) group.Submit(Request(id, 8, 40));
  int full = 0;
  while (const std::optional<StepPlan> plan = group.Step()) {
    int64_t rows = 0, proposals = 0;
    for (const Segment& segment : plan->segments) {
      rows += std::ssize(segment.tokens);
      proposals += segment.proposals;
    }
    if (proposals > 0) {
      EXPECT_LE(rows, 7);
    }
    full += rows == 7;
  }
  EXPECT_GT(full, 0);
  group.RunAll();
}

// Two sequences have exactly the blocks that they need in the end. What a proposal takes for a step
// is there for the other one in the next.
TEST(Speculation, ProposalsPreemptNobody) {
  for (const int steps_max : {1, 2}) {
    EngineOptions options = Eager();
    options.steps_max = steps_max;
    options.blocks = {2 * 12, 0};
    EngineGroup group(options);
    for (uint64_t id = 1; id <= 2; ++id) group.Submit(Request(id, 8, 41));
    group.RunAll();
    EXPECT_EQ(group.engine.stats().preemptions, 0);
    EXPECT_GT(group.engine.stats().proposed_tokens, 0);
  }
}

TEST(Speculation, BlocksOfWrongProposalsAreNeitherHeldNorCached) {
  EngineGroup group(Eager());
  group.Submit(Request(1, 8, 80));
  while (group.Step()) {
    const int64_t tokens = 8 + std::ssize(group.outputs[1]);
    if (group.End(1) != nullptr) break;
    const EngineStats stats = group.engine.stats();
    EXPECT_EQ(stats.blocks_used[0], (tokens - 1 + 3) / 4);
    EXPECT_EQ(std::ssize(group.engine.CachedLinks()), (tokens - 1) / 4);
  }
}

// Without a good guess nothing waits for a token, and with one the next step does.
TEST(Speculation, OverlapIsForThoseWithoutGoodGuesses) {
  EngineOptions options = Eager();
  options.steps_max = 2;
  EngineGroup group(options);
  group.Submit(Request(1, 8, 80));
  int sampled = 0, proposed = 0;
  while (const std::optional<StepPlan> plan = group.Step()) {
    const Segment& segment = plan->segments[0];
    sampled += segment.tokens[0] == kSampledToken;
    proposed += segment.proposals > 0;
  }
  EXPECT_GT(sampled, 0);
  EXPECT_GT(proposed, 0);
  group.RunAll();
}

// A row costs more than an unlikely proposal is worth once a step has many.
TEST(Speculation, UnlikelyProposalsAreNotWorthARow) {
  EngineOptions options = Eager();
  options.speculation.free_rows = 0;
  EngineGroup group(options);
  group.Submit(Request(1, 8, 80));
  group.RunAll();
  EXPECT_EQ(group.engine.stats().proposed_tokens, 0);
}

}  // namespace
}  // namespace facet::testing
