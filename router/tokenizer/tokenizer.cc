#include "router/tokenizer/tokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "router/tokenizer/bpe_tokenizer.h"
#include "router/tokenizer/spm_tokenizer.h"

namespace facet {
namespace {

// The texts by which tokens that end a turn are known across model families.
constexpr std::array<std::string_view, 13> kEndTexts = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "</s>",
    "<|end_of_text|>",
    "<eos>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(const GgufModel& model) {
  FACET_ASSIGN_OR_RETURN(const Vocabulary vocabulary, ReadVocabulary(model));
  return Create(vocabulary);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(const Vocabulary& vocabulary) {
  FACET_RETURN_IF_ERROR(ValidateVocabulary(vocabulary));
  std::unique_ptr<Tokenizer> tokenizer;
  if (vocabulary.kind == TokenizerKind::kSentencePiece) {
    tokenizer = std::make_unique<SpmTokenizer>(vocabulary);
  } else {
    FACET_ASSIGN_OR_RETURN(tokenizer, BpeTokenizer::Create(vocabulary));
  }
  if (tokenizer->add_bos() && !tokenizer->bos().has_value()) {
    return InvalidArgument("tokenizer.ggml.add_bos_token is true, but there is no bos_token_id");
  }
  FACET_RETURN_IF_ERROR(tokenizer->IndexTexts());
  tokenizer->MarkEndOfGeneration(vocabulary);
  return tokenizer;
}

Tokenizer::Tokenizer(const Vocabulary& vocabulary, bool add_bos, bool add_space_prefix)
    : bos_(vocabulary.bos),
      eos_(vocabulary.eos),
      add_bos_(vocabulary.add_bos.value_or(add_bos)),
      add_space_prefix_(add_space_prefix),
      types_(vocabulary.types) {
  for (const std::string_view token : vocabulary.tokens) texts_.Append(token);
}

void Tokenizer::StringTable::Append(std::string_view text) {
  bytes += text;
  ends.push_back(static_cast<uint32_t>(bytes.size()));
}

std::string_view Tokenizer::StringTable::At(TokenId id) const {
  const uint32_t begin = id == 0 ? 0 : ends[id - 1];
  return std::string_view(bytes).substr(begin, ends[id] - begin);
}

void Tokenizer::AppendTokenBytes(std::string_view bytes) { outputs_.Append(bytes); }

absl::Status Tokenizer::IndexTexts() {
  ids_.reserve(types_.size());
  for (TokenId id = 0; id < size(); ++id) {
    const std::string_view text = texts_.At(id);
    if (text.empty()) continue;  // a hole in the vocabulary: it has an id, but nothing spells it
    const auto [entry, is_new] = ids_.emplace(text, id);
    if (!is_new) {
      return InvalidArgument("tokenizer.ggml.tokens: {} and {} have the same text", entry->second,
                             id);
    }
    if (types_[id] == TokenType::kUserDefined) cutter_.Add(text, id, /*always=*/true);
    if (types_[id] == TokenType::kControl || types_[id] == TokenType::kUnknown) {
      cutter_.Add(text, id, /*always=*/false);
    }
  }
  return absl::OkStatus();
}

void Tokenizer::MarkEndOfGeneration(const Vocabulary& vocabulary) {
  ends_generation_.assign(types_.size(), false);
  for (const auto& id : {vocabulary.eos, vocabulary.eot, vocabulary.eom}) {
    if (id.has_value()) ends_generation_[*id] = true;
  }
  for (const std::string_view text : kEndTexts) {
    const std::optional<TokenId> id = Find(text);
    // In Gemma's vocabulary "</s>" is user-defined: the HTML tag that ends struck-through text.
    const bool is_html_tag = text == "</s>" && id && types_[*id] == TokenType::kUserDefined;
    if (id.has_value() && !is_html_tag) ends_generation_[*id] = true;
  }
}

std::vector<TokenId> Tokenizer::Encode(std::string_view text, const EncodeOptions& options) const {
  FACET_CHECK(text.size() <= kMaxTextBytes, "text has {} bytes", text.size());
  std::vector<TokenId> ids;
  if (options.add_bos.value_or(add_bos_) && bos_.has_value()) ids.push_back(*bos_);
  size_t done = 0;
  for (const SpecialCutter::Cut& cut : cutter_.Find(text, options.parse_special)) {
    if (cut.begin > done) EncodeFragment(text.substr(done, cut.begin - done), ids);
    ids.push_back(cut.id);
    done = cut.begin + cut.size;
  }
  if (done < text.size()) EncodeFragment(text.substr(done), ids);
  return ids;
}

std::string_view Tokenizer::TokenBytes(TokenId id) const {
  return Contains(id) ? outputs_.At(id) : std::string_view();
}

std::string_view Tokenizer::TokenText(TokenId id) const {
  return Contains(id) ? texts_.At(id) : std::string_view();
}

std::optional<TokenId> Tokenizer::Find(std::string_view token_text) const {
  const auto entry = ids_.find(token_text);
  if (entry == ids_.end()) return std::nullopt;
  return entry->second;
}

}  // namespace facet
