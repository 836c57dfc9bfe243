#ifndef FACET_TESTS_TOKENIZER_TINY_VOCABULARY_H_
#define FACET_TESTS_TOKENIZER_TINY_VOCABULARY_H_

// Vocabularies small enough to check by hand, for tests and the fuzzer.

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "base/check.h"
#include "base/status.h"
#include "router/tokenizer/tokenizer.h"
#include "router/tokenizer/vocabulary.h"

namespace facet {

// A Vocabulary that owns its strings. Tokens get ids in the order they are added.
class TinyVocabulary {
 public:
  explicit TinyVocabulary(TokenizerKind kind, std::string_view pre = "") {
    vocabulary_.kind = kind;
    vocabulary_.pre = pre;
  }

  TokenId Add(std::string text, TokenType type = TokenType::kNormal, float score = 0) {
    vocabulary_.tokens.push_back(strings_.emplace_back(std::move(text)));
    vocabulary_.types.push_back(type);
    if (vocabulary_.kind == TokenizerKind::kSentencePiece) vocabulary_.scores.push_back(score);
    return static_cast<TokenId>(vocabulary_.tokens.size()) - 1;
  }
  void AddMerge(std::string merge) {
    vocabulary_.merges.push_back(strings_.emplace_back(std::move(merge)));
  }
  // "<0x00>" to "<0xFF>".
  void AddByteTokens() {
    for (int byte = 0; byte < 256; ++byte) Add(fmt::format("<0x{:02X}>", byte), TokenType::kByte);
  }
  // The 256 characters that stand for bytes, in the order of the bytes.
  void AddByteCharacters();

  Vocabulary& operator*() { return vocabulary_; }
  Vocabulary* operator->() { return &vocabulary_; }

 private:
  std::deque<std::string> strings_;  // views into it stay valid
  Vocabulary vocabulary_;
};

inline void TinyVocabulary::AddByteCharacters() {
  // Written out instead of computed, so that it does not repeat the code under test: the bytes
  // 00-20, 7F-A0 and AD are U+0100 to U+0143, the others are themselves.
  const auto two_bytes = [](int character) {
    return std::string{static_cast<char>(0xC0 | character >> 6),
                       static_cast<char>(0x80 | (character & 0x3F))};
  };
  for (int byte = 0; byte < 256; ++byte) {
    if (byte <= 0x20) {
      Add(two_bytes(0x100 + byte));
    } else if (byte < 0x7F) {
      Add(std::string(1, static_cast<char>(byte)));
    } else if (byte <= 0xA0) {
      Add(two_bytes(0x121 + byte - 0x7F));
    } else {
      Add(two_bytes(byte == 0xAD ? 0x143 : byte));
    }
  }
}

// gguf.md's worked example and what a SentencePiece vocabulary needs around it:
// <unk> 0, <s> 1, </s> 2, bytes 3..258, then pieces.
inline TinyVocabulary TinySpm() {
  TinyVocabulary tiny(TokenizerKind::kSentencePiece);
  tiny->unknown = tiny.Add("<unk>", TokenType::kUnknown);
  tiny->bos = tiny.Add("<s>", TokenType::kControl);
  tiny->eos = tiny.Add("</s>", TokenType::kControl);
  tiny.AddByteTokens();
  const std::pair<const char*, float> pieces[] = {
      {"▁", -3},  {"h", -4},  {"e", -4},       {"l", -4},      {"o", -4},
      {"he", -1}, {"ll", -2}, {"hell", -1.5f}, {"hello", -.5}, {"▁hello", -.2f},
      {"<", -5},  {">", -5},  {"s", -5},       {"/", -5},      {"é", -6}};
  for (const auto& [text, score] : pieces) tiny.Add(text, TokenType::kNormal, score);
  return tiny;
}

// Byte characters 0..255 with <|end|> 256 (control) after them, some merges, pre-tokenizer gpt-2.
inline TinyVocabulary TinyBpe(std::string_view pre = "gpt-2") {
  TinyVocabulary tiny(TokenizerKind::kByteLevelBpe, pre);
  tiny.AddByteCharacters();
  tiny->eos = tiny->bos = tiny.Add("<|end|>", TokenType::kControl);
  for (const char* text : {"he", "ll", "hell", "hello", "Ġhello", "Ġh"}) tiny.Add(text);
  for (const char* merge : {"h e", "l l", "he ll", "hell o", "Ġ hello", "Ġ h"})
    tiny.AddMerge(merge);
  return tiny;
}

// Of a vocabulary that has no mistakes.
inline std::unique_ptr<Tokenizer> MakeTokenizer(const Vocabulary& vocabulary) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Create(vocabulary);
  FACET_CHECK(tokenizer.ok(), "{}", MessageOf(tokenizer.status()));
  return *std::move(tokenizer);
}

}  // namespace facet

#endif  // FACET_TESTS_TOKENIZER_TINY_VOCABULARY_H_
