#include "router/tokenizer/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace facet {
namespace {

TEST(Utf8, EveryCodePointRoundTrips) {
  for (uint32_t c = 0; c <= 0x10FFFF; c += c < 0x3000 ? 1 : 37) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    AppendUtf8(c, text);
    const Utf8Step step = ScanUtf8(text + "\x80");
    ASSERT_EQ(step.kind, Utf8Kind::kCharacter) << c;
    ASSERT_EQ(step.bytes, text.size()) << c;
    ASSERT_EQ(DecodeCharacter(text), c);
  }
}

TEST(Utf8, ProperPrefixesOfACharacterArePartial) {
  for (const std::string text : {"é", "語", "😀", "\xF4\x8F\xBF\xBF", "\xED\x9F\xBF"}) {
    for (size_t size = 1; size < text.size(); ++size) {
      const Utf8Step step = ScanUtf8(text.substr(0, size));
      EXPECT_EQ(step.kind, Utf8Kind::kPartial);
      EXPECT_EQ(step.bytes, size);
    }
  }
}

TEST(Utf8, IllFormedSequencesAreInvalidByTheirMaximalSubpart) {
  struct Case {
    std::string text;
    size_t bytes;
  };
  // Unicode 15, table 3-8 and its neighbours, and what overlong forms and surrogates come to.
  for (const Case& c : {Case{"\x80", 1}, Case{"\xC0\xAF", 1}, Case{"\xE0\x80\xBF", 1},
                        Case{"\xED\xA0\x80", 1}, Case{"\xF4\x91\x92\x93", 1}, Case{"\xFF", 1},
                        Case{"\xE1\x80\xE2", 2}, Case{"\xF1\x80\x80\x41", 3}, Case{"\xC3\x28", 1},
                        Case{"\xF0\x8F\x80\x80", 1}, Case{"\xF5\x80\x80\x80", 1}}) {
    const Utf8Step step = ScanUtf8(c.text);
    EXPECT_EQ(step.kind, Utf8Kind::kInvalid) << testing::PrintToString(c.text);
    EXPECT_EQ(step.bytes, c.bytes) << testing::PrintToString(c.text);
    EXPECT_FALSE(IsValidUtf8("ok" + c.text));
  }
}

TEST(Utf8, ReplacesByteByByte) {
  EXPECT_EQ(ReplaceInvalidBytes("a\xE1\x80z\xF0\x9F\x98"), "a\uFFFD\uFFFDz\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(ReplaceInvalidBytes("né 語😀"), "né 語😀");
  EXPECT_EQ(ReplaceInvalidBytes(""), "");
}

TEST(Utf8, TrimsAsPythonDoes) {
  EXPECT_EQ(TrimWhiteSpace(" \t\n\u3000 a \u00a0b\u2003\x1c\n"), "a \u00a0b");
  EXPECT_EQ(TrimWhiteSpace(" \n"), "");
  EXPECT_EQ(TrimWhiteSpace(""), "");
  EXPECT_EQ(TrimWhiteSpace("\u200bx"), "\u200bx");
}

}  // namespace
}  // namespace facet
