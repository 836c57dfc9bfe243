#include "router/tokenizer/detokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "router/tokenizer/utf8.h"
#include "tests/tokenizer/tiny_vocabulary.h"

namespace facet {
namespace {

// A tokenizer whose ids 0..255 are the bytes.
const Tokenizer& Bytes() {
  static const auto* tokenizer = MakeTokenizer(*TinyBpe()).release();
  return *tokenizer;
}

std::vector<std::string> PushAll(std::string_view bytes) {
  Detokenizer detokenizer(Bytes());
  std::vector<std::string> pieces;
  for (const char byte : bytes) pieces.push_back(detokenizer.Push(static_cast<uint8_t>(byte)));
  pieces.push_back(detokenizer.Flush());
  return pieces;
}

TEST(Detokenizer, HoldsEveryCharacterUntilItIsWhole) {
  for (const std::string character : {"a", "é", "語", "😀"}) {
    std::vector<std::string> expected(character.size() - 1, "");
    expected.push_back(character);
    expected.push_back("");
    EXPECT_EQ(PushAll(character), expected);
  }
}

TEST(Detokenizer, ReplacesOnceItIsCertain) {
  using Pieces = std::vector<std::string>;
  EXPECT_EQ(PushAll("\xFF"), (Pieces{"\uFFFD", ""}));
  EXPECT_EQ(PushAll("\xE8\xAA"), (Pieces{"", "", "\uFFFD"}));
  EXPECT_EQ(PushAll("\xE8\xAAz"), (Pieces{"", "", "\uFFFDz", ""}));
  EXPECT_EQ(PushAll("\xE8\xC3\xA9"), (Pieces{"", "\uFFFD", "é", ""}));
  EXPECT_EQ(PushAll("\xED\xA0\x80"), (Pieces{"", "\uFFFD\uFFFD", "\uFFFD", ""}));
  EXPECT_EQ(PushAll("\xF0\x9F\x98\xF0\x9F\x98\x80"),
            (Pieces{"", "", "", "\uFFFD", "", "", "😀", ""}));
}

TEST(Detokenizer, TheTextDoesNotDependOnHowBytesAreCutIntoTokens) {
  // Tokens of 1 to 4 bytes with every boundary inside characters.
  TinyVocabulary tiny = TinyBpe();
  const std::string text = "aé語😀\xE8\xAA\xFFz\xF0\x9F\xC3";
  std::vector<std::vector<TokenId>> tokens_at(text.size());  // by size - 1
  const auto spell = [&](std::string_view bytes) {
    std::string spelled;
    for (const char byte : bytes) spelled += tiny->tokens[static_cast<uint8_t>(byte)];
    return spelled;
  };
  for (size_t at = 0; at < text.size(); ++at) {
    for (size_t size = 1; size <= 4 && at + size <= text.size(); ++size) {
      const std::string spelled = spell(std::string_view(text).substr(at, size));
      const auto known = std::find(tiny->tokens.begin(), tiny->tokens.end(), spelled);
      tokens_at[at].push_back(known != tiny->tokens.end()
                                  ? static_cast<TokenId>(known - tiny->tokens.begin())
                                  : tiny.Add(spelled));
    }
  }
  const auto tokenizer = MakeTokenizer(*tiny);
  const std::string expected = "aé語😀\uFFFD\uFFFDz\uFFFD\uFFFD";
  for (uint32_t seed = 0; seed < 2000; ++seed) {
    std::mt19937 random(seed);
    Detokenizer detokenizer(*tokenizer);
    std::string decoded;
    for (size_t at = 0; at < text.size();) {
      const size_t choice = random() % tokens_at[at].size();
      const std::string piece = detokenizer.Push(tokens_at[at][choice]);
      ASSERT_TRUE(IsValidUtf8(piece));
      decoded += piece;
      at += choice + 1;
    }
    ASSERT_EQ(decoded + detokenizer.Flush(), expected) << "seed " << seed;
  }
}

TEST(Detokenizer, StripsThePrefixSpaceOnceAndOnlyAtATextsStart) {
  const auto tokenizer = MakeTokenizer(*TinySpm());
  const TokenId hello = *tokenizer->Find("▁hello");
  Detokenizer start(*tokenizer);
  EXPECT_EQ(start.Push(1), "");  // bos is not text
  EXPECT_EQ(start.Push(hello), "hello");
  EXPECT_EQ(start.Push(hello), " hello");
  Detokenizer continued(*tokenizer, {.at_text_start = false});
  EXPECT_EQ(continued.Push(hello), " hello");

  TinyVocabulary without = TinySpm();
  without->add_space_prefix = false;
  const auto plain = MakeTokenizer(*without);
  Detokenizer unchanged(*plain);
  EXPECT_EQ(unchanged.Push(hello), " hello");
}

TEST(Detokenizer, ControlTokensAddNothingAndBreakNothing) {
  const auto tokenizer = MakeTokenizer(*TinySpm());
  Detokenizer detokenizer(*tokenizer);
  EXPECT_EQ(detokenizer.Push(3 + 0xC3), "");
  EXPECT_EQ(detokenizer.Push(2), "");
  EXPECT_EQ(detokenizer.Push(1 << 20), "");  // padding beyond the vocabulary
  EXPECT_EQ(detokenizer.Push(3 + 0xA9), "é");
}

}  // namespace
}  // namespace facet
