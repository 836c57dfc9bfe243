#ifndef FACET_ROUTER_TOKENIZER_BPE_TOKENIZER_H_
#define FACET_ROUTER_TOKENIZER_BPE_TOKENIZER_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/hash/hash.h"
#include "absl/status/statusor.h"
#include "router/tokenizer/pre_tokenizer.h"
#include "router/tokenizer/symbol_merger.h"
#include "router/tokenizer/tokenizer.h"

namespace facet {

// GPT-2's byte-level BPE: a pre-tokenizer cuts text into words, and the bytes of each word are
// merged by a ranked list of pairs. Made by Tokenizer::Create.
//
// The file writes bytes as printable characters (space is "Ġ"). They are turned back into bytes
// at load, so that encoding works on the text itself.
class BpeTokenizer : public Tokenizer {
 public:
  // REQUIRES: ValidateVocabulary(vocabulary).ok(). Unimplemented for an unknown pre-tokenizer.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const Vocabulary& vocabulary);

 protected:
  void EncodeFragment(std::string_view text, std::vector<TokenId>& out) const override;

 private:
  // What bytes can merge into. Symbols 0..255 are the single bytes.
  using SymbolId = int32_t;
  // Finds by std::string_view, which Debian's absl does not know as a string.
  struct StringHash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return absl::Hash<std::string_view>()(text); }
  };

  BpeTokenizer(const Vocabulary& vocabulary, PreTokenizer pre_tokenizer);

  void AddTokens(const Vocabulary& vocabulary);
  void AddMerges(const Vocabulary& vocabulary);
  SymbolId Intern(const std::string& bytes);
  void EncodeWord(std::string_view word, SymbolMerger& merger, std::vector<TokenId>& out) const;
  // The token of a symbol, or where the vocabulary lacks it those of its bytes that exist.
  void AppendSymbol(std::string_view bytes, SymbolId symbol, std::vector<TokenId>& out) const;

  PreTokenizer pre_tokenizer_;
  // By bytes.
  absl::flat_hash_map<std::string, SymbolId, StringHash, std::equal_to<>> symbols_;
  std::vector<TokenId> tokens_;                         // by symbol; -1 where there is none
  absl::flat_hash_map<uint64_t, MergedSymbol> merges_;  // by left << 32 | right
};

}  // namespace facet

#endif  // FACET_ROUTER_TOKENIZER_BPE_TOKENIZER_H_
