// Any bytes as a text, and as token ids, for tiny vocabularies of every kind: what Encode, the
// detokenizer and the stop matcher promise holds.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "router/tokenizer/chat_format.h"
#include "router/tokenizer/detokenizer.h"
#include "router/tokenizer/stop_matcher.h"
#include "router/tokenizer/tokenizer.h"
#include "router/tokenizer/utf8.h"
#include "tests/tokenizer/tiny_vocabulary.h"

namespace facet {
namespace {

void AddSpecials(TinyVocabulary& tiny) {
  for (const char* text : {"\n", "\n\n", "\n\n\n", "<b>", "b>lo"}) {
    tiny.Add(text, TokenType::kUserDefined);
  }
  for (const char* text : {"<start_of_turn>", "<end_of_turn>", "</", "/s>h", "\x01"}) {
    tiny.Add(text, TokenType::kControl);
  }
}

std::vector<std::unique_ptr<Tokenizer>> MakeTokenizers() {
  std::vector<std::unique_ptr<Tokenizer>> tokenizers;
  const auto add = [&](TinyVocabulary tiny) {
    AddSpecials(tiny);
    auto tokenizer = Tokenizer::Create(*tiny);
    FACET_CHECK(tokenizer.ok(), "{}", MessageOf(tokenizer.status()));
    tokenizers.push_back(*std::move(tokenizer));
  };
  for (const bool prefix : {true, false}) {
    TinyVocabulary tiny = TinySpm();
    tiny->add_space_prefix = prefix;
    add(std::move(tiny));
  }
  for (const char* pre :
       {"gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "deepseek-llm", "deepseek-v3"}) {
    add(TinyBpe(pre));
  }
  return tokenizers;
}

std::string Decode(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  Detokenizer detokenizer(tokenizer);
  std::string text;
  for (const TokenId id : ids) {
    const std::string piece = detokenizer.Push(id);
    FACET_CHECK(IsValidUtf8(piece));
    text += piece;
  }
  text += detokenizer.Flush();
  FACET_CHECK(IsValidUtf8(text));
  return text;
}

void CheckEncode(const Tokenizer& tokenizer, std::string_view text, bool parse_special) {
  const std::vector<TokenId> ids =
      tokenizer.Encode(text, {.add_bos = false, .parse_special = parse_special});
  for (const TokenId id : ids) {
    FACET_CHECK(id >= 0 && id < tokenizer.size());
    FACET_CHECK(parse_special || !tokenizer.IsControl(id), "control id {}", id);
  }
  const std::string decoded = Decode(tokenizer, ids);
  // Every byte has a token in these vocabularies, so nothing is lost, except that SentencePiece
  // writes spaces as U+2581 and puts more of them after cut tokens if it puts any.
  const bool same_spaces = text.find("\xE2\x96\x81") == text.npos && !tokenizer.add_space_prefix();
  if (!parse_special && IsValidUtf8(text) && same_spaces) FACET_CHECK(decoded == text);
}

// The input's bytes as ids, some beyond the vocabulary.
void CheckDecode(const Tokenizer& tokenizer, std::string_view bytes) {
  std::vector<TokenId> ids;
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    ids.push_back(static_cast<uint8_t>(bytes[i]) + 256 * (static_cast<uint8_t>(bytes[i + 1]) % 3) -
                  1);
  }
  Decode(tokenizer, ids);
}

void CheckStops(std::string_view text) {
  const size_t cut = std::min<size_t>(text.size(), 3);
  auto matcher = StopMatcher::Create({std::string(text.substr(0, cut)), "\n\n", "ab"});
  if (!matcher.ok()) return;  // empty, or not UTF-8
  std::string seen;
  while (!text.empty()) {
    const size_t size = ScanUtf8(text).bytes;
    seen += matcher->Push(text.substr(0, size));
    text.remove_prefix(size);
  }
  seen += matcher->Flush();
  for (const size_t stop : {0, 1, 2}) FACET_CHECK(seen.find(matcher->stop(stop)) == seen.npos);
}

void CheckChat(const Tokenizer& tokenizer, std::string_view text) {
  const auto format = ChatFormat::Choose({.architecture = "gemma3"}, tokenizer);
  FACET_CHECK(format.ok());
  const std::vector<ChatMessage> messages = {{"system", std::string(text)},
                                             {"user", std::string(text)}};
  const auto ids = format->Render(messages);
  FACET_CHECK(ids.ok() || !IsValidUtf8(text));
  if (!ids.ok()) return;
  // bos, the user's two markers and the one that begins the answer.
  FACET_CHECK(std::count_if(ids->begin(), ids->end(),
                            [&](TokenId id) { return tokenizer.IsControl(id); }) == 4);
}

}  // namespace
}  // namespace facet

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* tokenizers =
      new std::vector<std::unique_ptr<facet::Tokenizer>>(facet::MakeTokenizers());
  if (size == 0) return 0;
  const facet::Tokenizer& tokenizer = *(*tokenizers)[data[0] / 2 % tokenizers->size()];
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  facet::CheckEncode(tokenizer, text, data[0] % 2 == 1);
  facet::CheckDecode(tokenizer, text);
  facet::CheckStops(text);
  facet::CheckChat(tokenizer, text);
  return 0;
}
