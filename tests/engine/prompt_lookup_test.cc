#include "shard_worker/engine/prompt_lookup.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace facet {
namespace {

std::vector<TokenId> GuessAfter(PromptLookup* lookup, const std::vector<TokenId>& tokens,
                                int most = 4, int entries_max = 1024) {
  lookup->Advance(tokens, most, entries_max);
  return {lookup->guess().begin(), lookup->guess().end()};
}

std::vector<TokenId> GuessAfter(const std::vector<TokenId>& tokens, int most = 4) {
  PromptLookup lookup;
  return GuessAfter(&lookup, tokens, most);
}

using Tokens = std::vector<TokenId>;

TEST(PromptLookup, GoesOnAsTheLastTime) {
  EXPECT_EQ(GuessAfter({1, 2, 3, 4, 5, 6, 7, 2, 3}), Tokens({4, 5, 6, 7}));
  EXPECT_EQ(GuessAfter({1, 2, 3, 9, 2, 3, 4, 5, 6, 7, 2, 3}, 2), Tokens({4, 5}));
}

TEST(PromptLookup, MoreTokensAlikeCountMoreThanTheLastTime) {
  // 2, 3 was last followed by 9; after a 1 it was 4.
  EXPECT_EQ(GuessAfter({1, 2, 3, 4, 5, 2, 3, 9, 9, 1, 2, 3}, 1), Tokens({4}));
}

TEST(PromptLookup, KnowsNothingOfWhatIsNew) {
  EXPECT_EQ(GuessAfter({1}), Tokens());
  EXPECT_EQ(GuessAfter({1, 2, 3, 4, 5}), Tokens());
  EXPECT_EQ(GuessAfter({1, 2, 3, 4, 9, 3}), Tokens());
}

TEST(PromptLookup, GuessOfALoopGoesRound) {
  EXPECT_EQ(GuessAfter({8, 1, 2, 3, 1, 2, 3}, 7), Tokens({1, 2, 3, 1, 2, 3, 1}));
  EXPECT_EQ(GuessAfter({5, 5, 5, 5}, 3), Tokens({5, 5, 5}));
}

// Whatever comes, and in what portions: a guess is what followed the last two tokens before.
TEST(PromptLookup, GuessesOnlyWhatTheTextHas) {
  std::mt19937 random(1);
  for (int run = 0; run < 200; ++run) {
    Tokens tokens;
    PromptLookup lookup;
    const int words = 2 + run % 9;
    for (int portion = 0; portion < 20; ++portion) {
      for (int i = static_cast<int>(random() % 5); i >= 0; --i) {
        tokens.push_back(static_cast<TokenId>(random() % static_cast<unsigned>(words)));
      }
      const Tokens guess = GuessAfter(&lookup, tokens, 4, 1 << 16);
      if (guess.empty()) continue;
      Tokens gram(tokens.end() - 2, tokens.end());
      gram.push_back(guess[0]);
      ASSERT_NE(std::search(tokens.begin(), tokens.end(), gram.begin(), gram.end()), tokens.end());
    }
  }
}

// An index that is too small for the text still says only what the text has.
TEST(PromptLookup, SmallIndexForgetsAndDoesNotErr) {
  std::mt19937 random(2);
  Tokens tokens;
  PromptLookup lookup;
  int guesses = 0;
  for (int i = 0; i < 3000; ++i) {
    tokens.push_back(static_cast<TokenId>(random() % 40));
    const Tokens guess = GuessAfter(&lookup, tokens, 1, 64);
    if (guess.empty()) continue;
    ++guesses;
    const Tokens gram = {tokens[tokens.size() - 2], tokens.back(), guess[0]};
    ASSERT_NE(std::search(tokens.begin(), tokens.end(), gram.begin(), gram.end()), tokens.end());
  }
  EXPECT_GT(guesses, 20);
}

TEST(PromptLookup, LearnsWhetherItIsRight) {
  Tokens round;
  PromptLookup right;
  for (int i = 0; i < 60; ++i) {
    round.push_back(i % 5);
    GuessAfter(&right, round);
  }
  EXPECT_GT(right.chance(0), 0.95);
  EXPECT_GT(right.chance(3), 0.85);
  EXPECT_LT(right.chance(3), right.chance(0));

  Tokens noise;
  PromptLookup wrong;
  for (int i = 0; i < 60; ++i) {
    for (const TokenId token : {1, 2, 100 + i}) {  // the same two, and then never the same
      noise.push_back(token);
      GuessAfter(&wrong, noise);
    }
  }
  noise.insert(noise.end(), {1, 2});
  EXPECT_EQ(GuessAfter(&wrong, noise, 1), Tokens({159}));
  EXPECT_LT(wrong.chance(0), 0.01);
}

}  // namespace
}  // namespace facet
