#include "router/tokenizer/stop_matcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/status.h"

namespace facet {
namespace {

using testing::HasSubstr;

StopMatcher MakeMatcher(std::vector<std::string> stops) {
  absl::StatusOr<StopMatcher> matcher = StopMatcher::Create(std::move(stops));
  FACET_CHECK(matcher.ok(), "{}", MessageOf(matcher.status()));
  return *std::move(matcher);
}

TEST(StopMatcher, FindsAStringAcrossPieces) {
  StopMatcher matcher = MakeMatcher({"\n\nUser:", "END"});
  EXPECT_EQ(matcher.Push("Fine.\n"), "Fine.");
  EXPECT_EQ(matcher.Push("\nUs"), "");
  EXPECT_FALSE(matcher.matched().has_value());
  EXPECT_EQ(matcher.Push("er: more"), "");
  EXPECT_EQ(matcher.matched(), 0u);
  EXPECT_EQ(matcher.stop(0), "\n\nUser:");
  EXPECT_EQ(matcher.Push("never seen"), "");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStop) {
  StopMatcher matcher = MakeMatcher({"aab"});
  EXPECT_EQ(matcher.Push("xa"), "x");
  EXPECT_EQ(matcher.Push("a"), "");
  EXPECT_EQ(matcher.Push("a"), "a");  // the last two may begin "aab"
  EXPECT_EQ(matcher.Push("c"), "aac");
  EXPECT_EQ(matcher.Push("aa"), "");
  EXPECT_EQ(matcher.Flush(), "aa");
}

TEST(StopMatcher, TheFirstToBeCompleteWinsThenTheLongest) {
  StopMatcher first = MakeMatcher({"abcd", "bc"});
  EXPECT_EQ(first.Push("xabcd"), "xa");
  EXPECT_EQ(first.matched(), 1u);
  StopMatcher longest = MakeMatcher({"c", "abc", "bc"});
  EXPECT_EQ(longest.Push("xabc"), "x");
  EXPECT_EQ(longest.matched(), 1u);
}

TEST(StopMatcher, WithoutStringsEverythingPasses) {
  StopMatcher matcher = MakeMatcher({});
  EXPECT_EQ(matcher.Push("anything"), "anything");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, RefusesBadStringsByTheirIndex) {
  const auto error = [](std::vector<std::string> stops, StopLimits limits = {}) {
    return MessageOf(StopMatcher::Create(std::move(stops), limits).status());
  };
  EXPECT_THAT(error({"a", ""}), HasSubstr("stop[1] is empty"));
  EXPECT_THAT(error({"\xFF"}), HasSubstr("stop[0] is not UTF-8"));
  EXPECT_THAT(error({"a", "b", "abc"}, {.max_bytes = 2}), HasSubstr("stop[2] has 3 bytes"));
  EXPECT_THAT(error({"a", "b", "c"}, {.max_strings = 2}), HasSubstr("stop has 3 strings"));
}

struct Outcome {
  std::string text;
  std::optional<size_t> matched;
};

// The definition, on the whole text at once.
Outcome Search(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::optional<size_t> best;
    for (size_t i = 0; i < stops.size(); ++i) {
      const bool complete = text.substr(0, end).ends_with(stops[i]);
      if (complete && (!best || stops[i].size() > stops[*best].size())) best = i;
    }
    if (best.has_value()) return {text.substr(0, end - stops[*best].size()), best};
  }
  return {text, std::nullopt};
}

TEST(StopMatcher, AgreesWithASearchOfTheWholeTextHoweverItIsCut) {
  for (uint32_t seed = 0; seed < 5000; ++seed) {
    std::mt19937 random(seed);
    const auto word = [&](size_t longest) {
      std::string text;
      for (size_t i = 1 + random() % longest; i > 0; --i) {
        text += static_cast<char>('a' + random() % 2);
      }
      return text;
    };
    std::vector<std::string> stops;
    for (size_t i = 1 + random() % 3; i > 0; --i) stops.push_back(word(6));
    const std::string text = word(24);
    const Outcome expected = Search(stops, text);

    StopMatcher matcher = MakeMatcher(stops);
    std::string seen;
    for (size_t at = 0; at < text.size();) {
      const size_t size = 1 + random() % 4;
      seen += matcher.Push(text.substr(at, size));
      ASSERT_TRUE(expected.text.starts_with(seen)) << "seed " << seed;
      at += size;
    }
    ASSERT_EQ(seen + matcher.Flush(), expected.text) << "seed " << seed;
    ASSERT_EQ(matcher.matched(), expected.matched) << "seed " << seed;
  }
}

}  // namespace
}  // namespace facet
