#ifndef FACET_ROUTER_TOKENIZER_TOKENIZER_H_
#define FACET_ROUTER_TOKENIZER_TOKENIZER_H_

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "checkpoint/gguf.h"
#include "router/tokenizer/special_cutter.h"
#include "router/tokenizer/vocabulary.h"

namespace facet {

struct EncodeOptions {
  // Absent: the model file's rule.
  std::optional<bool> add_bos;
  // Whether a control token spelled in the text becomes that token. Off for anything a user
  // wrote: then no spelling, of whatever kind, yields a control or byte token's id.
  bool parse_special = false;
};

// Text to token ids and back, with the vocabulary of one model file.
// Immutable after Create and safe for any number of threads. Owns all it needs: the model may go.
class Tokenizer {
 public:
  // Encode's limit, so that positions fit 32 bits with room to spare. A caller that faces clients
  // refuses longer texts first, with its own much smaller limit.
  static constexpr size_t kMaxTextBytes = 256u << 20;

  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const GgufModel& model);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const Vocabulary& vocabulary);

  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // `text` may be any bytes. Bytes that are not UTF-8 become byte tokens in a SentencePiece
  // vocabulary and U+FFFD, one per byte, in a byte-level one (as llama.cpp has it). What the
  // vocabulary has neither a piece nor a byte token for becomes the unknown token, or nothing in
  // a byte-level vocabulary. O(n log n) for n bytes. REQUIRES: text.size() <= kMaxTextBytes.
  std::vector<TokenId> Encode(std::string_view text, const EncodeOptions& options = {}) const;

  // Tokens in the vocabulary. Logits may have more columns than this; ids beyond are padding.
  TokenId size() const { return static_cast<TokenId>(types_.size()); }

  // The bytes `id` contributes to output text, perhaps part of a character. Empty for control,
  // unknown and unused tokens, and for an id outside the vocabulary.
  std::string_view TokenBytes(TokenId id) const;
  // The token as the file spells it ("<end_of_turn>", "▁the", "Ġthe"); empty outside.
  std::string_view TokenText(TokenId id) const;
  // The token that the file spells so.
  std::optional<TokenId> Find(std::string_view token_text) const;

  std::optional<TokenId> bos() const { return bos_; }
  std::optional<TokenId> eos() const { return eos_; }
  bool add_bos() const { return add_bos_; }
  // Whether Encode puts a space before text, which a detokenizer takes away again.
  bool add_space_prefix() const { return add_space_prefix_; }

  bool IsControl(TokenId id) const { return Contains(id) && types_[id] == TokenType::kControl; }
  // Whether the model means to stop: its eos, eot and eom tokens, and the tokens known by their
  // text to end a turn, because files often name only one of several.
  bool IsEndOfGeneration(TokenId id) const { return Contains(id) && ends_generation_[id]; }

 protected:
  // `add_bos`: where the file does not say. REQUIRES: ValidateVocabulary(vocabulary).ok().
  Tokenizer(const Vocabulary& vocabulary, bool add_bos, bool add_space_prefix);

  // Appends the ids of a piece of text that holds no token to be cut out whole.
  virtual void EncodeFragment(std::string_view text, std::vector<TokenId>& out) const = 0;

  bool Contains(TokenId id) const { return id >= 0 && id < size(); }
  TokenType TypeOf(TokenId id) const { return types_[id]; }
  // Sets what TokenBytes answers; `bytes` is copied. Called once per token, in order of ids.
  void AppendTokenBytes(std::string_view bytes);

 private:
  // Many short strings end to end: a vocabulary of 262,144 std::strings would take four times it.
  struct StringTable {
    std::string bytes;
    std::vector<uint32_t> ends;
    void Append(std::string_view text);
    std::string_view At(TokenId id) const;
  };

  absl::Status IndexTexts();
  void MarkEndOfGeneration(const Vocabulary& vocabulary);

  std::optional<TokenId> bos_, eos_;
  bool add_bos_;
  bool add_space_prefix_;
  std::vector<TokenType> types_;
  std::vector<bool> ends_generation_;
  StringTable texts_;
  StringTable outputs_;
  absl::flat_hash_map<std::string_view, TokenId> ids_;  // keys point into texts_
  SpecialCutter cutter_;
};

}  // namespace facet

#endif  // FACET_ROUTER_TOKENIZER_TOKENIZER_H_
