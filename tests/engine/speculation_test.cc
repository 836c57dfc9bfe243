// What proposals do to steps and blocks. That they change no token is in everything that is
// compared with a naive loop, here and in engine_random_test.

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "base/prng.h"
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

// --- How many guesses a sequence gets, with the options that a leader has.

// What a sequence says at a position, whatever the model.
using Text = std::function<TokenId(int64_t position)>;

// Sequences in one batch that say given texts.
class Talkers {
 public:
  explicit Talkers(std::vector<Text> texts) : texts_(std::move(texts)), engine_(Options()) {
    for (size_t i = 0; i < texts_.size(); ++i) {
      EngineRequest request = Request(i + 1, {texts_[i](0), texts_[i](1)}, 2000);
      request.seed = i;
      EXPECT_TRUE(engine_.Submit(request, 0).ok());
    }
  }

  // Of each sequence, the guesses in the next `steps` steps.
  std::vector<int64_t> Proposals(int steps) {
    std::vector<int64_t> proposals(texts_.size());
    for (int i = 0; i < steps; ++i) {
      const std::optional<StepPlan> plan = engine_.Plan(0);
      EXPECT_TRUE(plan.has_value());
      for (const SequenceStart& start : plan->starts) talker_[start.slot] = start.seed;
      StepResult result{.step = plan->step};
      for (const Segment& segment : plan->segments) {
        const size_t talker = talker_.at(segment.slot);
        proposals[talker] += segment.proposals;
        result.segments.push_back(Answer(segment, texts_[talker]));
      }
      engine_.Complete(result, 0);
      engine_.TakeDeltas();
    }
    return proposals;
  }

 private:
  static EngineOptions Options() {
    EngineOptions options = SmallOptions();
    options.blocks = {2000, 0};
    options.context_tokens = 2002;
    options.steps_max = 1;
    options.speculation.proposals_max = 8;
    return options;
  }

  static SegmentResult Answer(const Segment& segment, const Text& text) {
    SegmentResult result;
    if (!segment.sample) return result;
    const auto count = static_cast<int64_t>(segment.tokens.size());
    for (int64_t i = count - segment.proposals - 1; i < count; ++i) {
      result.sampled.push_back({.id = text(segment.first_position + i + 1)});
      const bool right =
          i + 1 < count && segment.tokens[static_cast<size_t>(i) + 1] == result.sampled.back().id;
      if (!right) break;
    }
    return result;
  }

  const std::vector<Text> texts_;
  Engine engine_;
  std::map<SlotId, size_t> talker_;
};

// Each gets what its own text is worth, in the same steps.
TEST(Speculation, EverySequenceGetsWhatItsTextIsWorth) {
  const Text loops = [](int64_t i) { return static_cast<TokenId>(i % 11); };
  // What follows two tokens is never what followed them before, and they come again and again.
  const Text misleads = [](int64_t i) {
    return static_cast<TokenId>(i % 3 == 2 ? 10 + i / 3 % 90 : i % 3);
  };
  const Text is_new = [](int64_t i) { return static_cast<TokenId>(Mix64(1, i) % 100); };
  constexpr int kSteps = 100;
  Talkers talkers({loops, misleads, is_new});
  talkers.Proposals(kSteps / 2);  // to learn
  const std::vector<int64_t> proposals = talkers.Proposals(kSteps);
  EXPECT_GE(proposals[0], 7 * kSteps);
  EXPECT_LE(proposals[1], kSteps / 10);
  EXPECT_LE(proposals[2], kSteps / 10);
}

// A sequence that begins to repeat itself is noticed, and one that no longer does costs little.
TEST(Speculation, FollowsATextThatChanges) {
  const Text text = [](int64_t i) {
    if (i >= 300 && i < 700) return static_cast<TokenId>(i % 7);
    return static_cast<TokenId>(Mix64(5, i) % 100);
  };
  Talkers talkers({text});
  const int64_t at_first = talkers.Proposals(290)[0];
  talkers.Proposals(30);
  const int64_t in_the_loop = talkers.Proposals(30)[0];
  talkers.Proposals(60);  // beyond its end
  const int64_t afterwards = talkers.Proposals(200)[0];
  EXPECT_LE(at_first, 29);
  EXPECT_GE(in_the_loop, 7 * 30);
  EXPECT_LE(afterwards, 20);
}

}  // namespace
}  // namespace facet::testing
