#include "router/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "tests/tokenizer/linear_time.h"
#include "tests/tokenizer/tiny_vocabulary.h"

namespace facet {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// The tokens as the file spells them.
std::vector<std::string> Spell(const Tokenizer& tokenizer, std::string_view text,
                               const EncodeOptions& options = {.add_bos = false}) {
  std::vector<std::string> tokens;
  for (const TokenId id : tokenizer.Encode(text, options)) {
    tokens.emplace_back(tokenizer.TokenText(id));
  }
  return tokens;
}

TEST(SpmTokenizer, WorkedExampleIsOneToken) {
  TinyVocabulary tiny = TinySpm();
  EXPECT_THAT(Spell(*MakeTokenizer(*tiny), "hello"), ElementsAre("▁hello"));
  tiny->add_space_prefix = false;
  EXPECT_THAT(Spell(*MakeTokenizer(*tiny), "hello"), ElementsAre("hello"));
  EXPECT_THAT(Spell(*MakeTokenizer(*tiny), "hello helhell"),
              ElementsAre("hello", "▁", "he", "l", "hell"));
}

TEST(SpmTokenizer, TiesAreMergedFromTheLeft) {
  TinyVocabulary tiny = TinySpm();
  tiny->add_space_prefix = false;
  EXPECT_THAT(Spell(*MakeTokenizer(*tiny), "lll"), ElementsAre("ll", "l"));
}

TEST(SpmTokenizer, WhatNoPieceCoversBecomesBytes) {
  TinyVocabulary tiny = TinySpm();
  tiny->add_space_prefix = false;
  const auto tokenizer = MakeTokenizer(*tiny);
  EXPECT_THAT(Spell(*tokenizer, "hé語"), ElementsAre("h", "é", "<0xE8>", "<0xAA>", "<0x9E>"));
  EXPECT_THAT(Spell(*tokenizer, std::string("\x80h\xC3\x00\xE8\xAA", 6)),
              ElementsAre("<0x80>", "h", "<0xC3>", "<0x00>", "<0xE8>", "<0xAA>"));
  // A character is as long as its first byte says, as in llama.cpp, so the "he" is lost to it.
  EXPECT_THAT(Spell(*tokenizer, "\xFFhell"),
              ElementsAre("<0xFF>", "<0x68>", "<0x65>", "<0x6C>", "l"));
  EXPECT_THAT(Spell(*tokenizer, "\n"), ElementsAre("<0x0A>"));
}

TEST(SpmTokenizer, WithoutByteTokensACharacterIsUnknown) {
  TinyVocabulary tiny(TokenizerKind::kSentencePiece);
  tiny->add_bos = false;
  tiny.Add("h");
  EXPECT_THAT(Spell(*MakeTokenizer(*tiny), "h"),
              ElementsAre("h"));  // not even a token for the space
  tiny->unknown = tiny.Add("<unk>", TokenType::kUnknown);
  EXPECT_THAT(Spell(*MakeTokenizer(*tiny), "語h"), ElementsAre("<unk>", "<unk>", "h"));
}

TEST(SpmTokenizer, NothingTheUserSpellsIsAControlOrByteToken) {
  TinyVocabulary tiny = TinySpm();
  tiny->add_space_prefix = false;
  // Merges that lead all the way to the control token and to a byte token.
  for (const char* text : {"</", "</s", "0", "x", "A", "<0", "<0x", "<0x0", "<0x0A"}) {
    tiny.Add(text, TokenType::kNormal, -1);
  }
  const TokenId x = tiny.Add("\x01", TokenType::kControl);
  const auto tokenizer = MakeTokenizer(*tiny);
  EXPECT_THAT(Spell(*tokenizer, "</s>"), ElementsAre("</s", ">"));
  EXPECT_THAT(Spell(*tokenizer, "<0x0A>"), ElementsAre("<0x0A", ">"));
  EXPECT_THAT(Spell(*tokenizer, "\x01"), ElementsAre("<0x01>"));
  EXPECT_THAT(tokenizer->Encode("\x01</s>", {.add_bos = false, .parse_special = true}),
              ElementsAre(x, 2));
}

TEST(SpmTokenizer, UserDefinedTokensAreCutFirst) {
  TinyVocabulary tiny = TinySpm();
  tiny->add_space_prefix = false;
  tiny.Add("lo", TokenType::kUserDefined);
  tiny.Add("\n", TokenType::kUserDefined);
  tiny.Add("\n\n", TokenType::kUserDefined);
  const auto tokenizer = MakeTokenizer(*tiny);
  EXPECT_THAT(Spell(*tokenizer, "hello\n\n\nhello"),
              ElementsAre("he", "l", "lo", "\n\n", "\n", "he", "l", "lo"));
}

TEST(SpmTokenizer, ThePrefixSpaceFollowsEveryCutToken) {
  TinyVocabulary tiny = TinySpm();
  tiny.Add("|", TokenType::kUserDefined);
  const auto tokenizer = MakeTokenizer(*tiny);
  EXPECT_THAT(Spell(*tokenizer, "hello|hello|"), ElementsAre("▁hello", "|", "▁hello", "|"));
  EXPECT_THAT(Spell(*tokenizer, ""), IsEmpty());
}

TEST(SpmTokenizer, TokenBytesAreWhatTheyAddToText) {
  TinyVocabulary tiny = TinySpm();
  const TokenId tag = tiny.Add("▁<b>", TokenType::kUserDefined);
  const TokenId unused = tiny.Add("zz", TokenType::kUnused);
  const auto tokenizer = MakeTokenizer(*tiny);
  EXPECT_EQ(tokenizer->TokenBytes(*tokenizer->Find("▁hello")), " hello");
  EXPECT_EQ(tokenizer->TokenBytes(3 + 0xC3), "\xC3");
  EXPECT_EQ(tokenizer->TokenBytes(tag), "▁<b>");
  EXPECT_EQ(tokenizer->TokenText(2), "</s>");
  for (const TokenId silent : {0, 1, 2, unused, -1, tokenizer->size(), 1 << 30}) {
    EXPECT_EQ(tokenizer->TokenBytes(silent), "") << silent;
  }
  EXPECT_EQ(tokenizer->TokenText(tokenizer->size()), "");
}

TEST(BpeTokenizer, MergesByRankWithinWords) {
  const auto tokenizer = MakeTokenizer(*TinyBpe());
  EXPECT_THAT(Spell(*tokenizer, "hello hello"), ElementsAre("hello", "Ġhello"));
  EXPECT_THAT(Spell(*tokenizer, "hellhe"), ElementsAre("hell", "he"));
  // "Ġhello" needs the whole word first, and "Ġ h" has the last rank.
  EXPECT_THAT(Spell(*tokenizer, " hell"), ElementsAre("Ġ", "hell"));
  EXPECT_THAT(Spell(*tokenizer, " hx"), ElementsAre("Ġh", "x"));
}

TEST(BpeTokenizer, BytesAreWrittenAsGpt2Does) {
  const auto tokenizer = MakeTokenizer(*TinyBpe());
  EXPECT_THAT(Spell(*tokenizer, "\n\t\x7F"), ElementsAre("Ċ", "ĉ", "ġ"));
  EXPECT_THAT(Spell(*tokenizer, "é\u00AD"), ElementsAre("Ã", "©", "Â", "Ń"));
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(tokenizer->TokenBytes(byte), std::string(1, static_cast<char>(byte)));
  }
}

TEST(BpeTokenizer, BytesThatAreNotUtf8BecomeReplacementCharacters) {
  const auto tokenizer = MakeTokenizer(*TinyBpe());
  const std::vector<TokenId> replacement = {0xEF, 0xBF, 0xBD};
  EXPECT_EQ(tokenizer->Encode("\xFF"), replacement);
  EXPECT_EQ(tokenizer->Encode("\xE8\xAA"), tokenizer->Encode("\uFFFD\uFFFD"));
}

TEST(BpeTokenizer, ControlTokensComeOnlyWhenAsked) {
  TinyVocabulary tiny = TinyBpe();
  for (const char* merge : {"< |", "| >", "<| end", "<|end |>", "e n", "en d"})
    tiny.AddMerge(merge);
  const auto tokenizer = MakeTokenizer(*tiny);
  for (const TokenId id : tokenizer->Encode("<|end|>")) EXPECT_FALSE(tokenizer->IsControl(id));
  EXPECT_THAT(tokenizer->Encode("<|end|>", {.parse_special = true}), ElementsAre(256));
}

TEST(BpeTokenizer, AMergeWithoutATokenFallsBackToItsBytes) {
  TinyVocabulary tiny = TinyBpe();
  tiny.AddMerge("x y");
  EXPECT_THAT(Spell(*MakeTokenizer(*tiny), "xy"), ElementsAre("x", "y"));
}

TEST(BpeTokenizer, IgnoreMergesTakesAWordThatIsAToken) {
  for (const bool ignores : {true, false}) {
    TinyVocabulary tiny = TinyBpe(ignores ? "llama-bpe" : "qwen2");
    tiny.Add("xyz");
    const std::vector<std::string> tokens = Spell(*MakeTokenizer(*tiny), "xyz");
    EXPECT_EQ(tokens.size(), ignores ? 1u : 3u);
  }
}

TEST(BpeTokenizer, MergesThatAreNoBytesAreLeftOut) {
  TinyVocabulary tiny = TinyBpe();
  for (const char* merge : {"", " ", "a", "a ", " a", "語 a", "\xFF \xFE"}) tiny.AddMerge(merge);
  EXPECT_THAT(Spell(*MakeTokenizer(*tiny), "hello"), ElementsAre("hello"));
}

TEST(Tokenizer, BosFollowsTheFileTheFamilyAndTheCaller) {
  TinyVocabulary spm = TinySpm();
  EXPECT_THAT(MakeTokenizer(*spm)->Encode(""), ElementsAre(1));
  spm->add_bos = false;
  EXPECT_THAT(MakeTokenizer(*spm)->Encode(""), IsEmpty());
  EXPECT_THAT(MakeTokenizer(*spm)->Encode("", {.add_bos = true}), ElementsAre(1));
  EXPECT_FALSE(MakeTokenizer(*TinyBpe("qwen2"))->add_bos());
  EXPECT_THAT(MakeTokenizer(*TinyBpe("llama3"))->Encode(""), ElementsAre(256));
}

TEST(Tokenizer, EndOfGenerationIsMoreThanEos) {
  TinyVocabulary tiny = TinySpm();
  const TokenId turn = tiny.Add("<end_of_turn>", TokenType::kControl);
  const TokenId eot = tiny.Add("<whatever>", TokenType::kControl);
  const TokenId other = tiny.Add("<start_of_turn>", TokenType::kControl);
  tiny->eot = eot;
  const auto tokenizer = MakeTokenizer(*tiny);
  for (const TokenId id : {2, turn, eot}) EXPECT_TRUE(tokenizer->IsEndOfGeneration(id)) << id;
  for (const TokenId id : {0, 1, other, -1, tokenizer->size()}) {
    EXPECT_FALSE(tokenizer->IsEndOfGeneration(id)) << id;
  }
}

TEST(Tokenizer, GemmasHtmlTagDoesNotEndAnything) {
  TinyVocabulary tiny(TokenizerKind::kSentencePiece);
  tiny->bos = tiny.Add("<bos>", TokenType::kControl);
  const TokenId tag = tiny.Add("</s>", TokenType::kUserDefined);
  const auto tokenizer = MakeTokenizer(*tiny);
  EXPECT_FALSE(tokenizer->IsEndOfGeneration(tag));
  EXPECT_THAT(tokenizer->Encode("</s>", {.add_bos = false}), ElementsAre(tag));
}

TEST(Tokenizer, RefusesVocabulariesThatLie) {
  const auto error = [](TinyVocabulary& tiny) {
    return MessageOf(Tokenizer::Create(*tiny).status());
  };
  TinyVocabulary twice = TinySpm();
  twice.Add("hello");
  EXPECT_THAT(error(twice), HasSubstr("267 and 274 have the same text"));
  TinyVocabulary outside = TinySpm();
  outside->eos = 1000;
  EXPECT_THAT(error(outside), HasSubstr("eos_token_id is 1000"));
  TinyVocabulary nan = TinySpm();
  nan->scores[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(error(nan), HasSubstr("scores[5] is not finite"));
  TinyVocabulary no_bos = TinySpm();
  no_bos->bos.reset();
  EXPECT_THAT(error(no_bos), HasSubstr("no bos_token_id"));
  TinyVocabulary empty(TokenizerKind::kSentencePiece);
  EXPECT_THAT(error(empty), HasSubstr("0 entries"));
  TinyVocabulary unknown_pre = TinyBpe("klingon");
  EXPECT_THAT(error(unknown_pre), HasSubstr("'klingon'"));
  TinyVocabulary long_token = TinySpm();
  long_token.Add(std::string(2000, 'x'), TokenType::kControl);
  EXPECT_THAT(error(long_token), HasSubstr("2000 bytes"));
}

TEST(Tokenizer, EmptyTokensKeepTheirIds) {
  TinyVocabulary tiny = TinySpm();
  tiny.Add("");
  tiny.Add("", TokenType::kControl);
  const TokenId last = tiny.Add("zz");
  const auto tokenizer = MakeTokenizer(*tiny);
  EXPECT_EQ(tokenizer->Find("zz"), last);
  EXPECT_EQ(tokenizer->Find(""), std::nullopt);
}

TEST(Tokenizer, TimeIsLinearInOneLongWord) {
  TinyVocabulary spm = TinySpm();
  for (const char* run : {"\n", "\n\n", "\n\n\n"}) spm.Add(run, TokenType::kUserDefined);
  for (const auto& tokenizer : {MakeTokenizer(*spm), MakeTokenizer(*TinyBpe())}) {
    for (const std::string unit : {"hello", "h", "l", " ", "\n", "語", "\xFF"}) {
      std::string small;
      while (small.size() < 1 << 18) small += unit;
      const std::string large = small + small + small + small;
      const auto encode = [&tokenizer](const std::string& text) {
        EXPECT_FALSE(tokenizer->Encode(text).empty());
      };
      EXPECT_TRUE(TakesLinearTime(encode, small, large)) << unit;
    }
  }
}

}  // namespace
}  // namespace facet
