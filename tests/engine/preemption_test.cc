// Who gives way when blocks run out, and what it costs: never a token.

#include <gtest/gtest.h>

#include <set>

#include "base/prng.h"
#include "tests/engine/engine_group.h"

namespace facet::testing {
namespace {

std::vector<TokenId> Prompt(int length, uint64_t own, int shared = 0) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < length; ++i) {
    tokens.push_back(static_cast<TokenId>(Mix64(i < shared ? 99 : own, i) % 100));
  }
  return tokens;
}

struct PressedGroup : EngineGroup {
  using EngineGroup::EngineGroup;

  void SubmitOf(uint64_t id, std::vector<TokenId> prompt, int max_tokens) {
    EngineRequest request = Request(id, std::move(prompt), max_tokens);
    request.seed = id;
    Submit(request);
  }
};

EngineOptions FullPool(int blocks) {
  EngineOptions options = SmallOptions();
  options.blocks = {blocks, 0};
  options.step_tokens_max = 64;
  options.prefill_chunk_max = 64;
  return options;
}

TEST(Preemption, WhoeverLosesTheLeastWorkGivesWay) {
  PressedGroup group(FullPool(12));
  group.SubmitOf(1, Prompt(12, 1), 30);
  group.SubmitOf(2, Prompt(8, 2), 6);   // ten tokens to compute again
  group.SubmitOf(3, Prompt(20, 3), 6);  // more than twenty
  group.RunAll();
  EXPECT_EQ(group.starts[1].size(), 1u);
  EXPECT_EQ(group.starts[2].size(), 2u);
  EXPECT_EQ(group.starts[3].size(), 1u);
}

TEST(Preemption, WorkInSharedBlocksIsNotLost) {
  PressedGroup group(FullPool(13));
  group.SubmitOf(1, Prompt(24, 1, 20), 20);
  group.SubmitOf(2, Prompt(8, 2), 20);
  group.SubmitOf(3, Prompt(21, 3, 20), 20);  // all but a few tokens are the first one's too
  group.RunAll();
  EXPECT_EQ(group.starts[1].size(), 1u);
  ASSERT_GE(group.starts[3].size(), 2u);
  // The third gave way before the second, if that had to at all.
  if (group.starts[2].size() > 1) {
    EXPECT_LE(group.starts[3][1], group.starts[2][1]);
  }
}

// The two younger ones share all that they have: only both together can give way.
TEST(Preemption, BlocksSharedByOthersCanBeHad) {
  EngineOptions options = SmallOptions();
  options.block_tokens = 1;
  options.blocks = {14, 0};
  options.prefill_chunk_max = 1;
  PressedGroup group(options);
  group.SubmitOf(1, Prompt(1, 1), 13);
  group.SubmitOf(2, Prompt(12, 2), 2);
  group.SubmitOf(3, Prompt(12, 2), 2);
  group.RunAll();
  EXPECT_EQ(group.starts[1].size(), 1u);
  EXPECT_GT(group.engine.stats().preemptions, 0);
}

TEST(Preemption, AtMostFourTimesEachWithProgressAndNeverTheOldest) {
  EngineOptions options = FullPool(12);
  options.waiting_max = 16;
  options.sequences_max = 8;
  int most = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE(seed);
    PressedGroup group(options);
    for (uint64_t id = 1; id <= 10; ++id) {
      group.SubmitOf(id, Prompt(1 + static_cast<int>(Mix64(seed, id) % 6), seed * 16 + id), 40);
    }
    group.RunAll();
    EXPECT_EQ(group.starts[1].size(), 1u);
    for (const auto& [id, at] : group.starts) {
      most = std::max(most, static_cast<int>(at.size()) - 1);
      EXPECT_LE(at.size(), 5u) << id;
      for (size_t i = 2; i < at.size(); ++i) EXPECT_GT(at[i], at[i - 1]) << id;
    }
  }
  EXPECT_EQ(most, 4);
}

// Two sequences of all lengths in pools of all sizes: among them are preemptions after every token.
TEST(Preemption, AfterEveryTokenTheTextGoesOn) {
  for (const bool window : {false, true}) {
    for (const int steps_max : {1, 2}) {
      std::set<int> preempted_at;
      const auto run = [&](int first, int second, int blocks) {
        EngineOptions options = FullPool(blocks);
        options.steps_max = steps_max;
        if (window) options.blocks[1] = 16;
        PressedGroup group(options);
        group.SubmitOf(1, Prompt(first, 1), 24 - first);
        group.SubmitOf(2, Prompt(second, 2), 18);
        group.RunAll();
        for (size_t i = 1; i < group.starts[2].size(); ++i) preempted_at.insert(group.starts[2][i]);
      };
      for (int first = 1; first <= 16; ++first) {
        for (int second = 3; second <= 8; ++second) {
          for (int blocks = 5; blocks <= 8; ++blocks) run(first, second, blocks);
        }
      }
      for (int tokens = 1; tokens <= 12; ++tokens) {
        EXPECT_EQ(preempted_at.count(tokens), 1u) << tokens;
      }
    }
  }
}

// Cancels and deadlines free everything within two steps, whatever is outstanding.
TEST(Preemption, EndsFreeBlocksWithinTwoSteps) {
  for (const int steps_max : {1, 2}) {
    for (int before = 0; before < 12; ++before) {
      for (const bool deadline : {false, true}) {
        EngineOptions options = SmallOptions();
        options.steps_max = steps_max;
        EngineGroup group(options);
        EngineRequest request = Request(1, 20, 20);
        if (deadline) request.deadline = 100;
        group.Submit(request);
        for (int i = 0; i < before; ++i) group.Step();
        if (deadline) {
          group.now = 100;
        } else {
          group.engine.Cancel(request.id, 0);
        }
        int steps = 0;
        for (; steps < 2 && group.engine.stats().blocks_used[0] > 0; ++steps) group.Step();
        EXPECT_EQ(group.engine.stats().blocks_used[0], 0);
        EXPECT_EQ(group.engine.stats().blocks_used[1], 0);
        while (group.Step()) {
        }
        EXPECT_EQ(group.End(1)->finish,
                  deadline ? EngineFinish::kDeadline : EngineFinish::kCancelled);
        EXPECT_EQ(group.engine.stats().expired_running + group.engine.stats().expired_waiting,
                  deadline ? 1 : 0);
      }
    }
  }
}

}  // namespace
}  // namespace facet::testing
