// What the engine's prefix cache promises: a prefix is computed once, and the text is the same.

#include <gtest/gtest.h>

#include <set>
#include <unordered_map>

#include "base/prefix_hash.h"
#include "base/prng.h"
#include "tests/engine/engine_group.h"

namespace facet::testing {
namespace {

// `length` tokens that begin with `shared` tokens of a common stream.
std::vector<TokenId> Prompt(int length, int shared, uint64_t own, int vocabulary = 100) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < length; ++i) {
    const uint64_t seed = i < shared ? 0 : 1000 + own;
    tokens.push_back(static_cast<TokenId>(Mix64(seed, i) % vocabulary));
  }
  return tokens;
}

struct Pools {
  const char* name;
  std::array<int, kBlockPools> blocks;
};

class PrefixCache : public ::testing::TestWithParam<Pools> {
 protected:
  EngineOptions Options() const {
    EngineOptions options = SmallOptions();
    options.blocks = GetParam().blocks;
    return options;
  }
};

// b = 4; the common prefix ends before, at and after block borders, and at the prompt's end.
TEST_P(PrefixCache, HitIsTheLongestPrefixOfWholeBlocks) {
  for (const int shared : {0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20}) {
    for (const int length : {shared, 20}) {
      if (length == 0) continue;
      SCOPED_TRACE(::testing::Message() << shared << " of " << length);
      EngineGroup group(Options());
      group.Submit(Request(1, Prompt(20, 20, 1), 4));
      group.RunAll();
      group.Submit(Request(2, Prompt(length, shared, 2), 4));
      group.RunAll();
      // The last token is computed in any case: the next one is chosen from its logits.
      EXPECT_EQ(group.cached_tokens(2), std::min(shared, length - 1) / 4 * 4);
      EXPECT_EQ(group.engine.stats().cached_tokens, group.cached_tokens(2));
      EXPECT_EQ(group.engine.stats().prompt_tokens_done, 20 + length - group.cached_tokens(2));
    }
  }
}

TEST_P(PrefixCache, ResubmissionFindsItsOutputToo) {
  EngineGroup group(Options());
  EngineRequest request = Request(1, Prompt(9, 9, 1), 20);
  group.Submit(request);
  for (int i = 0; i < 12; ++i) group.Step();
  group.engine.Cancel(request.id, 0);
  while (group.Step()) {
  }
  EngineRequest again = request;
  again.id = SequenceId{2};
  const std::vector<TokenId>& output = group.outputs[1];
  ASSERT_GE(output.size(), 10u);
  again.tokens.insert(again.tokens.end(), output.begin(), output.end());
  const int64_t before = group.tokens_computed;
  group.Submit(again);
  group.RunAll();
  const int64_t known = static_cast<int64_t>(again.tokens.size());
  // What is left of the last block, and the output to come; its last token is not computed.
  EXPECT_EQ(group.tokens_computed - before, known - (known - 1) / 4 * 4 + (20 - (known - 9)) - 1);
  EXPECT_EQ(group.cached_tokens(2), 9);  // of the prompt
}

TEST_P(PrefixCache, SequencesOfOtherSaltsShareNothing) {
  EngineGroup group(Options());
  group.Submit(Request(1, Prompt(20, 20, 1), 2));
  group.RunAll();
  EngineRequest other = Request(2, Prompt(20, 20, 1), 2);
  other.cache_salt = 7;
  group.Submit(other);
  group.RunAll();
  EXPECT_EQ(group.cached_tokens(2), 0);
}

TEST_P(PrefixCache, RequestsForEveryPositionFillTheCacheAndDoNotUseIt) {
  for (const bool digest : {false, true}) {
    EngineGroup group(Options());
    for (uint64_t id = 1; id <= 3; ++id) {
      EngineRequest request = Request(id, Prompt(20, 20, 1), 2);
      request.logits_digest = digest && id < 3;
      request.prompt_logprobs = !digest && id < 3;
      group.Submit(request);
      group.RunAll();
    }
    EXPECT_EQ(group.cached_tokens(1), 0);
    EXPECT_EQ(group.cached_tokens(2), 0);
    EXPECT_EQ(group.cached_tokens(3), 16);
  }
}

TEST_P(PrefixCache, SwitchedOffItFindsNothing) {
  EngineOptions options = Options();
  options.prefix_cache = false;
  EngineGroup group(options);
  for (uint64_t id = 1; id <= 2; ++id) {
    group.Submit(Request(id, Prompt(20, 20, 1), 2));
    group.RunAll();
    EXPECT_EQ(group.cached_tokens(id), 0);
  }
  EXPECT_TRUE(group.engine.CachedLinks().empty());
  EXPECT_EQ(group.engine.stats().blocks_cached[0] + group.engine.stats().blocks_cached[1], 0);
}

// A reported link is a hit: the news name exactly the prefixes that a request would find.
TEST_P(PrefixCache, NewsNameWhatRequestsFind) {
  EngineGroup group(Options());
  std::set<uint64_t> links;
  for (uint64_t id = 1; id <= 40; ++id) {
    const std::vector<TokenId> prompt =
        Prompt(5 + static_cast<int>(Mix64(id) % 24), static_cast<int>(Mix64(id, 1) % 20), id % 7);
    const CacheNews news = group.engine.TakeCacheNews();
    for (const uint64_t link : news.stored) EXPECT_TRUE(links.insert(link).second);
    for (const uint64_t link : news.evicted) EXPECT_EQ(links.erase(link), 1u);
    int told = 0, blocks = 0;
    for (const uint64_t link : PrefixLinks(0, prompt, 4)) {
      const bool computes_one = ++blocks * 4 < static_cast<int>(prompt.size());
      if (links.count(link) > 0 && computes_one) told = blocks * 4;
    }
    group.Submit(Request(id, prompt, 6));
    group.RunAll();
    EXPECT_EQ(group.cached_tokens(id), told) << id;
  }
  EXPECT_GT(group.engine.stats().cached_tokens, 0);
}

// While the first of them computes the prefix, the others wait, and take over block by block.
TEST_P(PrefixCache, PrefixThatIsBeingComputedIsWaitedFor) {
  for (const int steps_max : {1, 2}) {
    EngineOptions options = Options();
    options.blocks = {GetParam().blocks[0] * 4, GetParam().blocks[1] * 4};
    options.steps_max = steps_max;
    options.prefill_chunk_max = 5;
    EngineGroup group(options);
    for (uint64_t id = 1; id <= 4; ++id) group.Submit(Request(id, Prompt(36, 33, id), 4));
    group.RunAll();
    EXPECT_EQ(group.cached_tokens(1), 0);
    for (uint64_t id = 2; id <= 4; ++id) EXPECT_EQ(group.cached_tokens(id), 32);
  }
}

TEST_P(PrefixCache, WhoWaitsGoesOnWhenTheFirstIsCancelled) {
  for (int cancel_after = 0; cancel_after < 12; ++cancel_after) {
    SCOPED_TRACE(cancel_after);
    EngineOptions options = Options();
    options.blocks = {GetParam().blocks[0] * 4, GetParam().blocks[1] * 4};
    options.prefill_chunk_max = 5;
    EngineGroup group(options);
    for (uint64_t id = 1; id <= 4; ++id) group.Submit(Request(id, Prompt(36, 33, id), 4));
    for (int i = 0; i < cancel_after; ++i) group.Step();
    group.engine.Cancel(SequenceId{1}, 0);
    group.RunAll();
    EXPECT_LE(group.engine.stats().prompt_tokens_done, 36 + 2 * 4 + 5 + 36);
  }
}

INSTANTIATE_TEST_SUITE_P(Pools, PrefixCache,
                         ::testing::Values(Pools{"both", {16, 16}}, Pools{"full", {16, 0}},
                                           Pools{"window", {0, 16}}),
                         [](const auto& info) { return info.param.name; });

TEST(PrefixCacheSharing, EqualPromptsHoldTheirBlocksOnce) {
  EngineOptions options = SmallOptions();
  options.blocks = {12, 0};
  EngineGroup group(options);
  // Three prompts of 8 blocks do not fit one beside the other.
  for (uint64_t id = 1; id <= 3; ++id) {
    EngineRequest request = Request(id, Prompt(33, 33, 0), 3);
    request.seed = id;
    group.Submit(request);
  }
  int most_running = 0;
  while (group.Step()) most_running = std::max(most_running, group.engine.stats().running);
  group.RunAll();
  EXPECT_EQ(most_running, 3);
  EXPECT_EQ(group.engine.stats().preemptions, 0);
  EXPECT_EQ(group.engine.stats().prompt_tokens_done, 33 + 1 + 1);
}

// Two that compute the same block side by side end up with one.
TEST(PrefixCacheSharing, BlocksComputedTwiceAreMerged) {
  EngineGroup group;
  for (uint64_t id = 1; id <= 2; ++id) {
    EngineRequest request = Request(id, Prompt(8, 8, 0), 6);
    request.logits_digest = true;  // no use of the cache, and no waiting
    group.Submit(request);
  }
  group.Step();
  EXPECT_EQ(group.engine.stats().blocks_used[0], 2);
  EXPECT_EQ(group.engine.stats().blocks_used[1], 2);
  group.RunAll();
}

TEST(PrefixCacheEviction, LeastRecentlyUsedGoesFirst) {
  EngineOptions options = SmallOptions();
  options.blocks = {9, 0};
  EngineGroup group(options);
  const auto run = [&](uint64_t id, uint64_t family) {
    group.Submit(Request(id, Prompt(12, 0, family), 1));
    group.RunAll();
    return group.cached_tokens(id);
  };
  EXPECT_EQ(run(1, 1), 0);
  EXPECT_EQ(run(2, 2), 0);
  EXPECT_EQ(run(3, 1), 8);
  EXPECT_EQ(run(4, 3), 0);
  EXPECT_EQ(run(5, 4), 0);  // needs three blocks: those of family 2
  EXPECT_EQ(run(6, 1), 8);
  EXPECT_EQ(run(7, 2), 0);
}

// The window pool lost the blocks in the middle of a long prompt, not those before its end.
TEST(PrefixCacheEviction, WindowBeforeAPromptsEndIsKeptLongest) {
  EngineOptions options = SmallOptions();
  options.blocks = {64, 12};
  options.context_tokens = 200;
  EngineGroup group(options);
  group.Submit(Request(1, Prompt(41, 41, 0), 1));
  group.RunAll();
  // The output of others drives their blocks through the pool.
  group.Submit(Request(2, Prompt(5, 0, 1), 60));
  group.RunAll();
  group.Submit(Request(3, Prompt(41, 41, 0), 1));
  group.RunAll();
  EXPECT_EQ(group.cached_tokens(3), 40);
  group.Submit(Request(4, Prompt(41, 21, 2), 1));  // parts in the middle: no window there
  group.RunAll();
  EXPECT_EQ(group.cached_tokens(4), 0);
}

// Two blocks of two tokens with one link, and a request for each: found by a birthday search over
// the first token, for equal upper halves of the state that the second token cannot change.
TEST(PrefixCacheCollision, EqualLinkOfOtherTokensIsAMiss) {
  EngineOptions options = SmallOptions();
  options.block_tokens = 2;
  options.vocabulary_size = std::numeric_limits<int>::max();
  const auto state = [](TokenId token) {
    return Mix64(Mix64(uint64_t{0} ^ 2) ^ static_cast<uint32_t>(token));
  };
  std::unordered_map<uint32_t, TokenId> by_upper;
  std::vector<TokenId> a, b;
  for (TokenId token = 0; a.empty(); ++token) {
    const auto [found, fresh] = by_upper.try_emplace(state(token) >> 32, token);
    if (fresh) continue;
    const uint32_t difference = static_cast<uint32_t>(state(token) ^ state(found->second));
    if (difference >> 31 != 0) continue;  // no token is negative
    a = {token, 5};
    b = {found->second, static_cast<TokenId>(5 ^ difference)};
  }
  ASSERT_EQ(PrefixLinks(0, a, 2), PrefixLinks(0, b, 2));
  for (std::vector<TokenId>* prompt : {&a, &b}) prompt->insert(prompt->end(), {1, 2, 3});
  ASSERT_EQ(PrefixLinks(0, a, 2), PrefixLinks(0, b, 2));

  EngineGroup group(options);
  uint64_t id = 0;
  const auto run = [&](const std::vector<TokenId>& prompt) {
    group.Submit(Request(++id, prompt, 5));
    group.RunAll();
    return group.cached_tokens(id);
  };
  EXPECT_EQ(run(a), 0);
  EXPECT_EQ(run(b), 0);
  EXPECT_EQ(run(b), 0);  // never stored
  EXPECT_EQ(run(a), 4);
  // Side by side, neither waits for the other.
  group.Submit(Request(++id, b, 5));
  group.Submit(Request(++id, a, 5));
  group.Submit(Request(++id, b, 5));
  group.RunAll();
}

// The example: 64 requests with 2,000 tokens in common and 64 of their own, on the pools
// of a model with both kinds of layers.
class SharedPrefix : public ::testing::TestWithParam<int> {
 protected:
  static EngineOptions Options() {
    EngineOptions options;
    options.blocks = {512, 576};
    options.window = 512;
    options.context_tokens = 32768;
    options.vocabulary_size = 1000;
    options.steps_max = GetParam();
    return options;
  }
  static EngineRequest Of(uint64_t id) { return Request(id, Prompt(2064, 2000, id, 1000), 8); }
};

TEST_P(SharedPrefix, IsComputedOnceIfAllComeAtOnce) {
  for (const int chunk : {100, 512}) {
    EngineOptions options = Options();
    options.prefill_chunk_max = chunk;
    EngineGroup group(options);
    for (uint64_t id = 1; id <= 64; ++id) group.Submit(Of(id));
    group.RunAll();
    EXPECT_EQ(group.engine.stats().prompt_tokens_done, 2064 + 63 * (2064 - 1984));
    EXPECT_EQ(group.engine.stats().preemptions, 0);
  }
}

TEST_P(SharedPrefix, IsComputedOnceIfTheOthersComeLater) {
  EngineGroup group(Options());
  group.Submit(Of(1));
  group.RunAll();
  for (uint64_t id = 2; id <= 64; ++id) group.Submit(Of(id));
  group.RunAll();
  EXPECT_EQ(group.engine.stats().prompt_tokens_done, 2064 + 63 * (2064 - 1984));
}

INSTANTIATE_TEST_SUITE_P(Steps, SharedPrefix, ::testing::Values(1, 2));

}  // namespace
}  // namespace facet::testing
