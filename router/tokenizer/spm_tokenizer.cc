#include "router/tokenizer/spm_tokenizer.h"

#include <algorithm>
#include <optional>
#include <string>

namespace facet {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t hit = std::min(text.find(from, at), text.size());
    out += text.substr(at, hit - at);
    if (hit == text.size()) break;
    out += to;
    at = hit + from.size();
  }
  return out;
}

// How long a character is by its first byte alone. Ill-formed text is cut by the same rule: its
// bytes find no piece and fall back to byte tokens one by one.
uint32_t LengthByLead(char lead) {
  const auto byte = static_cast<uint8_t>(lead);
  if (byte < 0xC0) return 1;
  return byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// The byte that "<0x0A>" stands for.
std::optional<uint8_t> ParseByteToken(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return std::nullopt;
  const int high = HexDigit(text[3]);
  const int low = HexDigit(text[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<uint8_t>(high * 16 + low);
}

}  // namespace

SpmTokenizer::SpmTokenizer(const Vocabulary& vocabulary)
    : Tokenizer(vocabulary, /*add_bos=*/true, vocabulary.add_space_prefix.value_or(true)),
      scores_(vocabulary.scores),
      unknown_(vocabulary.unknown) {
  byte_tokens_.fill(-1);
  for (TokenId id = 0; id < size(); ++id) {
    const std::string_view text = vocabulary.tokens[id];
    longest_token_ = std::max(longest_token_, text.size());
    const std::optional<uint8_t> byte = ParseByteToken(text);
    switch (TypeOf(id)) {
      case TokenType::kNormal:
        AppendTokenBytes(ReplaceAll(text, kSpaceMark, " "));
        break;
      case TokenType::kUserDefined:
        AppendTokenBytes(text);
        break;
      case TokenType::kByte: {
        if (byte.has_value()) byte_tokens_[*byte] = id;
        const char value = static_cast<char>(byte.value_or(0));
        AppendTokenBytes(std::string_view(&value, byte.has_value() ? 1 : 0));
        break;
      }
      default:
        AppendTokenBytes("");
    }
  }
}

TokenId SpmTokenizer::FindPiece(std::string_view text) const {
  if (text.size() > longest_token_) return -1;
  const std::optional<TokenId> id = Find(text);
  if (!id.has_value()) return -1;
  const TokenType type = TypeOf(*id);
  const bool formed =
      type != TokenType::kControl && type != TokenType::kUnknown && type != TokenType::kByte;
  return formed ? *id : -1;
}

void SpmTokenizer::AppendBytes(std::string_view text, std::vector<TokenId>& out) const {
  const auto token_of = [&](char byte) { return byte_tokens_[static_cast<uint8_t>(byte)]; };
  if (std::all_of(text.begin(), text.end(), [&](char byte) { return token_of(byte) >= 0; })) {
    for (const char byte : text) out.push_back(token_of(byte));
  } else if (unknown_.has_value()) {
    out.push_back(*unknown_);
  }
}

void SpmTokenizer::EncodeFragment(std::string_view fragment, std::vector<TokenId>& out) const {
  std::string text = ReplaceAll(fragment, " ", kSpaceMark);
  if (add_space_prefix()) text.insert(0, kSpaceMark);
  const std::string_view view = text;

  SymbolMerger merger;
  std::vector<Symbol>& symbols = merger.symbols();
  for (uint32_t at = 0; at < view.size(); at += symbols.back().size) {
    const auto left = static_cast<uint32_t>(view.size() - at);
    const uint32_t length = std::min(LengthByLead(view[at]), left);
    symbols.push_back({at, length, FindPiece(view.substr(at, length))});
  }
  merger.Merge([&](const Symbol& left, const Symbol& right) -> std::optional<MergedSymbol> {
    const TokenId id = FindPiece(view.substr(left.begin, left.size + right.size));
    if (id < 0) return std::nullopt;
    return MergedSymbol{-scores_[id], id};
  });
  for (const Symbol& symbol : symbols) {
    if (symbol.id >= 0 && symbol.size > 0) {
      out.push_back(symbol.id);
    } else {
      AppendBytes(view.substr(symbol.begin, symbol.size), out);
    }
  }
}

}  // namespace facet
