#include "router/tokenizer/vocabulary.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "base/status.h"

namespace facet {
namespace {

constexpr size_t kMaxTokens = 1u << 20;
constexpr size_t kMaxTokenBytes = 64 << 10;
// Every position of a text may be compared with the longest token that is cut out whole, so this
// bounds the work per byte. The longest in a known model has a few dozen bytes.
constexpr size_t kMaxCutTokenBytes = 1 << 10;

// "</s>" and "<s>" are not among them: in Gemma's vocabulary they
// are HTML tags.
constexpr std::string_view kTurnMarkers[] = {
    "<start_of_turn>",
    "<end_of_turn>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<EOT>",
    "_<EOT>",
    "<end_of_utterance>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<extra_id_0>",
    "<extra_id_1>",
    "<reserved_106>",
    "<reserved_107>",
};

absl::Status ReadKind(const GgufModel& model, Vocabulary& vocabulary) {
  FACET_ASSIGN_OR_RETURN(const std::string_view kind, model.GetString("tokenizer.ggml.model"));
  if (kind == "llama") {
    vocabulary.kind = TokenizerKind::kSentencePiece;
    return absl::OkStatus();
  }
  if (kind != "gpt2") {
    return Unimplemented("tokenizer.ggml.model is '{}'; supported: llama, gpt2", kind);
  }
  vocabulary.kind = TokenizerKind::kByteLevelBpe;
  FACET_ASSIGN_OR_RETURN(vocabulary.pre, model.GetString("tokenizer.ggml.pre"));
  FACET_ASSIGN_OR_RETURN(vocabulary.merges, model.GetStrings("tokenizer.ggml.merges"));
  return absl::OkStatus();
}

// The first `count` numbers of the array at `key`, which may be longer; `missing` where absent.
absl::StatusOr<std::vector<double>> ReadPerToken(const GgufModel& model, std::string_view key,
                                                 size_t count, double missing) {
  if (!model.Has(key)) return std::vector<double>(count, missing);
  FACET_ASSIGN_OR_RETURN(std::vector<double> values, model.GetNumbers(key));
  if (values.size() < count) {
    return InvalidArgument("{} has {} entries for {} tokens", key, values.size(), count);
  }
  values.resize(count);
  return values;
}

TokenType ToTokenType(double value) {
  const bool known = value >= 0 && value <= 6;
  return known ? static_cast<TokenType>(static_cast<int>(value)) : TokenType::kUndefined;
}

absl::Status ReadTokens(const GgufModel& model, Vocabulary& vocabulary) {
  FACET_ASSIGN_OR_RETURN(vocabulary.tokens, model.GetStrings("tokenizer.ggml.tokens"));
  const size_t count = vocabulary.tokens.size();
  FACET_ASSIGN_OR_RETURN(const auto types,
                         ReadPerToken(model, "tokenizer.ggml.token_type", count, 1));
  for (size_t i = 0; i < count; ++i) {
    const bool marker = IsTurnMarker(vocabulary.tokens[i]);
    vocabulary.types.push_back(marker ? TokenType::kControl : ToTokenType(types[i]));
  }
  if (vocabulary.kind != TokenizerKind::kSentencePiece) return absl::OkStatus();
  FACET_ASSIGN_OR_RETURN(const auto scores, ReadPerToken(model, "tokenizer.ggml.scores", count, 0));
  vocabulary.scores.assign(scores.begin(), scores.end());
  return absl::OkStatus();
}

absl::Status ReadId(const GgufModel& model, std::string_view key, std::optional<TokenId>& id) {
  if (!model.Has(key)) return absl::OkStatus();
  FACET_ASSIGN_OR_RETURN(const int64_t value, model.GetInt(key));
  if (value < 0 || value >= static_cast<int64_t>(kMaxTokens)) {
    return InvalidArgument("{} is {}, which is no token id", key, value);
  }
  id = static_cast<TokenId>(value);
  return absl::OkStatus();
}

absl::Status ReadFlag(const GgufModel& model, std::string_view key, std::optional<bool>& flag) {
  if (!model.Has(key)) return absl::OkStatus();
  FACET_ASSIGN_OR_RETURN(flag, model.GetBool(key));
  return absl::OkStatus();
}

absl::Status ReadIds(const GgufModel& model, Vocabulary& vocabulary) {
  const bool spm = vocabulary.kind == TokenizerKind::kSentencePiece;
  // The defaults for a file without the keys are SentencePiece's own; byte-level BPE has none.
  if (spm && vocabulary.tokens.size() > 2) {
    vocabulary.unknown = 0;
    vocabulary.bos = 1;
    vocabulary.eos = 2;
  }
  FACET_RETURN_IF_ERROR(ReadId(model, "tokenizer.ggml.bos_token_id", vocabulary.bos));
  FACET_RETURN_IF_ERROR(ReadId(model, "tokenizer.ggml.eos_token_id", vocabulary.eos));
  FACET_RETURN_IF_ERROR(ReadId(model, "tokenizer.ggml.eot_token_id", vocabulary.eot));
  FACET_RETURN_IF_ERROR(ReadId(model, "tokenizer.ggml.eom_token_id", vocabulary.eom));
  FACET_RETURN_IF_ERROR(ReadId(model, "tokenizer.ggml.unknown_token_id", vocabulary.unknown));
  FACET_RETURN_IF_ERROR(ReadFlag(model, "tokenizer.ggml.add_bos_token", vocabulary.add_bos));
  return ReadFlag(model, "tokenizer.ggml.add_space_prefix", vocabulary.add_space_prefix);
}

bool IsCut(TokenType type) {
  return type == TokenType::kControl || type == TokenType::kUserDefined ||
         type == TokenType::kUnknown;
}

absl::Status ValidateTokens(const Vocabulary& vocabulary) {
  const size_t count = vocabulary.tokens.size();
  if (count == 0 || count > kMaxTokens) {
    return InvalidArgument("tokenizer.ggml.tokens has {} entries; 1 to {} are supported", count,
                           kMaxTokens);
  }
  if (vocabulary.types.size() != count) {
    return InvalidArgument("tokenizer.ggml.token_type has {} entries for {} tokens",
                           vocabulary.types.size(), count);
  }
  for (size_t i = 0; i < count; ++i) {
    const size_t limit = IsCut(vocabulary.types[i]) ? kMaxCutTokenBytes : kMaxTokenBytes;
    if (vocabulary.tokens[i].size() > limit) {
      return InvalidArgument("tokenizer.ggml.tokens[{}] has {} bytes; at most {} are supported", i,
                             vocabulary.tokens[i].size(), limit);
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateScores(const Vocabulary& vocabulary) {
  if (vocabulary.kind != TokenizerKind::kSentencePiece) return absl::OkStatus();
  if (vocabulary.scores.size() != vocabulary.tokens.size()) {
    return InvalidArgument("tokenizer.ggml.scores has {} entries for {} tokens",
                           vocabulary.scores.size(), vocabulary.tokens.size());
  }
  for (size_t i = 0; i < vocabulary.scores.size(); ++i) {
    if (!std::isfinite(vocabulary.scores[i])) {
      return InvalidArgument("tokenizer.ggml.scores[{}] is not finite", i);
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateId(const Vocabulary& vocabulary, std::string_view name,
                        std::optional<TokenId> id) {
  const auto size = static_cast<int64_t>(vocabulary.tokens.size());
  if (!id.has_value() || (*id >= 0 && *id < size)) return absl::OkStatus();
  return InvalidArgument("tokenizer.ggml.{}_token_id is {}, but there are {} tokens", name, *id,
                         size);
}

}  // namespace

bool IsTurnMarker(std::string_view text) {
  return std::find(std::begin(kTurnMarkers), std::end(kTurnMarkers), text) !=
         std::end(kTurnMarkers);
}

absl::Status ValidateVocabulary(const Vocabulary& vocabulary) {
  FACET_RETURN_IF_ERROR(ValidateTokens(vocabulary));
  FACET_RETURN_IF_ERROR(ValidateScores(vocabulary));
  FACET_RETURN_IF_ERROR(ValidateId(vocabulary, "bos", vocabulary.bos));
  FACET_RETURN_IF_ERROR(ValidateId(vocabulary, "eos", vocabulary.eos));
  FACET_RETURN_IF_ERROR(ValidateId(vocabulary, "eot", vocabulary.eot));
  FACET_RETURN_IF_ERROR(ValidateId(vocabulary, "eom", vocabulary.eom));
  return ValidateId(vocabulary, "unknown", vocabulary.unknown);
}

absl::StatusOr<Vocabulary> ReadVocabulary(const GgufModel& model) {
  Vocabulary vocabulary;
  FACET_RETURN_IF_ERROR(ReadKind(model, vocabulary));
  FACET_RETURN_IF_ERROR(ReadTokens(model, vocabulary));
  FACET_RETURN_IF_ERROR(ReadIds(model, vocabulary));
  FACET_RETURN_IF_ERROR(ValidateVocabulary(vocabulary));
  return vocabulary;
}

}  // namespace facet
