#ifndef FACET_ROUTER_TOKENIZER_SPM_TOKENIZER_H_
#define FACET_ROUTER_TOKENIZER_SPM_TOKENIZER_H_

#include <array>
#include <string_view>
#include <vector>

#include "router/tokenizer/symbol_merger.h"
#include "router/tokenizer/tokenizer.h"

namespace facet {

// SentencePiece's BPE: characters are merged into the pieces of best score, spaces are written
// U+2581, and what no piece covers becomes one byte token per byte. Made by Tokenizer::Create.
//
// Differs from llama.cpp in one thing: pieces that SentencePiece itself never forms from text
// (control, unknown and byte tokens) are not formed here either, so that nothing a user spells,
// not even "<0x0A>", turns into one.
class SpmTokenizer : public Tokenizer {
 public:
  // REQUIRES: ValidateVocabulary(vocabulary).ok().
  explicit SpmTokenizer(const Vocabulary& vocabulary);

 protected:
  void EncodeFragment(std::string_view text, std::vector<TokenId>& out) const override;

 private:
  // The token that characters may merge into, or -1.
  TokenId FindPiece(std::string_view text) const;
  // A character without a piece: its byte tokens, or the unknown token if one is missing.
  void AppendBytes(std::string_view text, std::vector<TokenId>& out) const;

  std::vector<float> scores_;
  size_t longest_token_ = 0;              // bytes
  std::array<TokenId, 256> byte_tokens_;  // -1 where the vocabulary has none
  std::optional<TokenId> unknown_;
};

}  // namespace facet

#endif  // FACET_ROUTER_TOKENIZER_SPM_TOKENIZER_H_
