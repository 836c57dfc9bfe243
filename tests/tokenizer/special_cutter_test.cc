#include "router/tokenizer/special_cutter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace facet {
namespace {

using Cut = SpecialCutter::Cut;

struct Token {
  std::string text;
  bool always = true;
};

SpecialCutter MakeCutter(const std::vector<Token>& tokens) {
  SpecialCutter cutter;
  for (size_t id = 0; id < tokens.size(); ++id) {
    cutter.Add(tokens[id].text, static_cast<TokenId>(id), tokens[id].always);
  }
  return cutter;
}

// The rule as gguf.md states it: for each token, longest first, cut every piece of text that is
// left at its occurrences, leftmost first.
std::vector<Cut> CutByLoop(const std::vector<Token>& tokens, const std::string& text,
                           bool parse_special) {
  std::vector<size_t> order(tokens.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return tokens[a].text.size() > tokens[b].text.size();
  });
  std::vector<int> owner(text.size(), -1);  // which cut a byte belongs to
  std::vector<Cut> cuts;
  for (const size_t id : order) {
    if (!tokens[id].always && !parse_special) continue;
    const size_t size = tokens[id].text.size();
    for (size_t at = 0; at + size <= text.size();) {
      const bool free = std::all_of(owner.begin() + at, owner.begin() + at + size,
                                    [](int cut) { return cut < 0; });
      if (!free || text.compare(at, size, tokens[id].text) != 0) {
        ++at;
        continue;
      }
      std::fill(owner.begin() + at, owner.begin() + at + size, static_cast<int>(cuts.size()));
      cuts.push_back(
          {static_cast<uint32_t>(at), static_cast<uint32_t>(size), static_cast<TokenId>(id)});
      at += size;
    }
  }
  std::sort(cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) { return a.begin < b.begin; });
  return cuts;
}

std::string Describe(const std::vector<Cut>& cuts) {
  std::string text;
  for (const Cut& cut : cuts) {
    text += "[" + std::to_string(cut.begin) + "+" + std::to_string(cut.size) + "=" +
            std::to_string(cut.id) + "]";
  }
  return text;
}

TEST(SpecialCutter, ALongerTokenWinsOverAnEarlierShorterOne) {
  const SpecialCutter cutter = MakeCutter({{"ab"}, {"bcd"}, {"d"}});
  EXPECT_EQ(Describe(cutter.Find("xabcdd", false)), "[2+3=1][5+1=2]");
}

TEST(SpecialCutter, RunsAreCutFromTheLeft) {
  const SpecialCutter cutter = MakeCutter({{"\n"}, {"\n\n"}, {"\n\n\n"}});
  EXPECT_EQ(Describe(cutter.Find("a\n\n\n\n\nb", false)), "[1+3=2][4+2=1]");
}

TEST(SpecialCutter, ControlTokensAreCutOnlyWhenAsked) {
  const SpecialCutter cutter = MakeCutter({{"<eot>", false}, {"eo"}});
  EXPECT_EQ(Describe(cutter.Find("<eot>", false)), "[1+2=1]");
  EXPECT_EQ(Describe(cutter.Find("<eot>", true)), "[0+5=0]");
}

TEST(SpecialCutter, NothingIsCutFromNothing) {
  EXPECT_TRUE(MakeCutter({{"a"}}).Find("", true).empty());
  EXPECT_TRUE(MakeCutter({}).Find("abc", true).empty());
}

TEST(SpecialCutter, AgreesWithTheLoopOverAllTokens) {
  for (uint32_t seed = 0; seed < 3000; ++seed) {
    std::mt19937 random(seed);
    const auto draw = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    const auto word = [&](int longest) {
      std::string text;
      for (int i = draw(1, longest); i > 0; --i) text += static_cast<char>('a' + draw(0, 1));
      return text;
    };
    std::vector<Token> tokens;
    for (int i = draw(1, 8); i > 0; --i) {
      const Token token{word(5), draw(0, 2) > 0};
      const bool is_new = std::none_of(tokens.begin(), tokens.end(),
                                       [&](const Token& t) { return t.text == token.text; });
      if (is_new) tokens.push_back(token);
    }
    const std::string text = word(40);
    for (const bool parse_special : {false, true}) {
      ASSERT_EQ(Describe(MakeCutter(tokens).Find(text, parse_special)),
                Describe(CutByLoop(tokens, text, parse_special)))
          << "seed " << seed << " text " << text;
    }
  }
}

}  // namespace
}  // namespace facet
