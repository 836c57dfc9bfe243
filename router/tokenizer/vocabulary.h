#ifndef FACET_ROUTER_TOKENIZER_VOCABULARY_H_
#define FACET_ROUTER_TOKENIZER_VOCABULARY_H_

// What a model file says about its tokenizer, checked, and before anything is built from it.

#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"
#include "checkpoint/gguf.h"

namespace facet {

// Values are the ones in the file.
enum class TokenType : uint8_t {
  kUndefined = 0,
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

enum class TokenizerKind {
  kSentencePiece,  // tokenizer.ggml.model "llama": BPE by score over characters, byte fallback
  kByteLevelBpe,   // "gpt2": BPE by merge list over bytes
};

// All strings are views into the model file (or into a test's literals).
struct Vocabulary {
  TokenizerKind kind = TokenizerKind::kSentencePiece;
  std::string_view pre;                  // byte-level BPE: the pre-tokenizer's name
  std::vector<std::string_view> tokens;  // arbitrary bytes; may be empty
  std::vector<float> scores;             // SentencePiece: one per token, finite
  std::vector<TokenType> types;          // one per token
  std::vector<std::string_view> merges;  // byte-level BPE: "left right", best first
  std::optional<TokenId> bos, eos, eot, eom, unknown;
  std::optional<bool> add_bos;           // absent: the rule of the kind and pre-tokenizer
  std::optional<bool> add_space_prefix;  // SentencePiece; absent: true
};

// Whether `text` spells a token by which some family tells turns apart.
bool IsTurnMarker(std::string_view text);

// Reads the tokenizer.ggml.* keys. A turn marker is a control token whatever the file calls it:
// DeepSeek's files say user-defined, and then anyone could write one into a message.
// InvalidArgument names the key that is missing or wrong; Unimplemented names a kind of tokenizer
// that Facet does not have.
absl::StatusOr<Vocabulary> ReadVocabulary(const GgufModel& model);

// Holds for every Vocabulary that ReadVocabulary returns; a test's own must pass it too.
absl::Status ValidateVocabulary(const Vocabulary& vocabulary);

}  // namespace facet

#endif  // FACET_ROUTER_TOKENIZER_VOCABULARY_H_
