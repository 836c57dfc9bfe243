#include "router/tokenizer/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/status.h"
#include "router/tokenizer/utf8.h"
#include "tests/tokenizer/golden_reader.h"
#include "tests/tokenizer/linear_time.h"

namespace facet {
namespace {

const char* const kFamilies[] = {"gpt-2",  "smollm",       "llama-bpe",  "qwen2",
                                 "tekken", "deepseek-llm", "deepseek-v3"};

PreTokenizer Make(std::string_view name) {
  absl::StatusOr<PreTokenizer> result = PreTokenizer::Create(name);
  FACET_CHECK(result.ok(), "{}", MessageOf(result.status()));
  return *std::move(result);
}

std::vector<std::string_view> Split(const PreTokenizer& pre, std::string_view text) {
  std::vector<std::string_view> words;
  pre.Split(text, words);
  return words;
}

// make_splits.py's digest of where a text is cut.
uint64_t Digest(const std::vector<std::string_view>& words) {
  std::string sizes;
  for (const std::string_view word : words) sizes += static_cast<char>(word.size() % 256);
  return Fnv1a(sizes) & 0xFFFF;
}

TEST(PreTokenizer, SplitsAsHuggingFaceDoes) {
  GoldenReader golden("splits.bin");
  const std::vector<std::string> texts = GoldenTexts();
  for (const char* family : kFamilies) {
    const PreTokenizer pre = Make(family);
    int wrong = 0;
    for (const std::string& text : texts) {
      if (!IsValidUtf8(text)) continue;
      const uint64_t expected = golden.LittleEndian(2);
      const std::vector<std::string_view> words = Split(pre, text);
      if (Digest(words) == expected || ++wrong > 5) continue;
      ADD_FAILURE() << family << ": " << text << "\n" << testing::PrintToString(words);
    }
    EXPECT_EQ(wrong, 0) << family;
  }
  EXPECT_TRUE(golden.AtEnd());
}

TEST(PreTokenizer, WordsAreTheWholeText) {
  for (const char* family : kFamilies) {
    const PreTokenizer pre = Make(family);
    for (const std::string& text : GoldenTexts()) {
      if (!IsValidUtf8(text)) continue;
      std::string joined;
      for (const std::string_view word : Split(pre, text)) {
        ASSERT_FALSE(word.empty() && !text.empty());
        joined += word;
      }
      ASSERT_EQ(joined, text) << family;
    }
  }
}

TEST(PreTokenizer, KnowsTheFamiliesOtherNamesAndRules) {
  EXPECT_TRUE(Make("llama3").add_bos());
  EXPECT_TRUE(Make("llama-v3").ignore_merges());
  EXPECT_TRUE(Make("pixtral").ignore_merges());
  EXPECT_TRUE(Make("tekken").add_bos());
  EXPECT_FALSE(Make("qwen2").add_bos());
  EXPECT_FALSE(Make("deepseek-r1-qwen").ignore_merges());
}

TEST(PreTokenizer, RefusesANameItDoesNotKnow) {
  for (const char* name : {"", "default", "gpt-2 ", "starcoder-9"}) {
    const absl::Status status = PreTokenizer::Create(name).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(MessageOf(status), testing::HasSubstr(fmt::format("'{}'", name)));
    EXPECT_THAT(MessageOf(status), testing::HasSubstr("llama-bpe"));
  }
}

std::string Repeat(std::string_view unit, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += unit;
  return text;
}

// Each unit makes some alternative of some pattern walk far and fail. Four times the text may take
// four times as long; sixteen would be quadratic.
TEST(PreTokenizer, TimeIsLinearOnHostileText) {
  for (const char* family : kFamilies) {
    const PreTokenizer pre = Make(family);
    for (const char* unit :
         {"a",    "A",      " ", "\n",  "\t ",  "   x", "Aa", "A\u0301", "\u0301", "1",
          "!",    "!a",     "'", "''s", " \n",  "\r",   "語", "한",      "١",      "\u180e",
          "\x01", "\u200b", "ǅ", "ʰ",   "aA1 ", "'r",   "’",  "/",       " /",     "\u00a0"}) {
      for (const char* end : {"", "x", "\n", "1"}) {
        const auto split = [&pre](const std::string& text) {
          EXPECT_FALSE(Split(pre, text).empty());
        };
        EXPECT_TRUE(
            TakesLinearTime(split, Repeat(unit, 1 << 14) + end, Repeat(unit, 1 << 16) + end))
            << family << " '" << unit << "' '" << end << "'";
      }
    }
  }
}

}  // namespace
}  // namespace facet
