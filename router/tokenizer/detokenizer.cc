#include "router/tokenizer/detokenizer.h"

#include <string_view>

#include "router/tokenizer/utf8.h"

namespace facet {

Detokenizer::Detokenizer(const Tokenizer& tokenizer, DetokenizerOptions options)
    : tokenizer_(tokenizer), strip_space_(options.at_text_start && tokenizer.add_space_prefix()) {}

std::string Detokenizer::Push(TokenId id) {
  std::string_view bytes = tokenizer_.TokenBytes(id);
  if (bytes.empty()) return {};
  if (strip_space_ && bytes[0] == ' ') bytes.remove_prefix(1);
  strip_space_ = false;
  pending_ += bytes;

  std::string text;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Step step = ScanUtf8(rest);
    if (step.kind == Utf8Kind::kPartial) break;
    const bool whole = step.kind == Utf8Kind::kCharacter;
    text += whole ? rest.substr(0, step.bytes) : kReplacementCharacter;
    rest.remove_prefix(step.bytes);
  }
  pending_.erase(0, pending_.size() - rest.size());
  return text;
}

std::string Detokenizer::Flush() {
  if (pending_.empty()) return {};
  pending_.clear();
  return std::string(kReplacementCharacter);
}

}  // namespace facet
