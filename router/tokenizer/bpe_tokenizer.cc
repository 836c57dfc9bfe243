#include "router/tokenizer/bpe_tokenizer.h"

#include <array>
#include <cstdint>
#include <utility>

#include "base/status.h"
#include "router/tokenizer/utf8.h"

namespace facet {
namespace {

uint64_t PairKey(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

// GPT-2's bytes_to_unicode, the other way round: the printable bytes of Latin-1 stand for
// themselves, the others, in order, for U+0100 and on. -1 for a character that stands for no byte.
std::array<int, 0x144> MakeByteTable() {
  std::array<int, 0x144> bytes;
  bytes.fill(-1);
  size_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    bytes[printable ? static_cast<size_t>(byte) : next++] = byte;
  }
  return bytes;
}

// The bytes that `text` writes, or nullopt where it has a character that stands for none.
std::optional<std::string> DecodeBytes(std::string_view text) {
  static const std::array<int, 0x144> kBytes = MakeByteTable();
  std::string bytes;
  while (!text.empty()) {
    const Utf8Step step = ScanUtf8(text);
    if (step.kind != Utf8Kind::kCharacter) return std::nullopt;
    const uint32_t character = DecodeCharacter(text.substr(0, step.bytes));
    if (character >= kBytes.size() || kBytes[character] < 0) return std::nullopt;
    bytes += static_cast<char>(kBytes[character]);
    text.remove_prefix(step.bytes);
  }
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> BpeTokenizer::Create(const Vocabulary& vocabulary) {
  FACET_ASSIGN_OR_RETURN(PreTokenizer pre_tokenizer, PreTokenizer::Create(vocabulary.pre));
  return std::unique_ptr<Tokenizer>(new BpeTokenizer(vocabulary, std::move(pre_tokenizer)));
}

BpeTokenizer::BpeTokenizer(const Vocabulary& vocabulary, PreTokenizer pre_tokenizer)
    : Tokenizer(vocabulary, pre_tokenizer.add_bos(), /*add_space_prefix=*/false),
      pre_tokenizer_(std::move(pre_tokenizer)) {
  for (int byte = 0; byte < 256; ++byte) Intern(std::string(1, static_cast<char>(byte)));
  AddTokens(vocabulary);
  AddMerges(vocabulary);
}

BpeTokenizer::SymbolId BpeTokenizer::Intern(const std::string& bytes) {
  const auto [entry, is_new] = symbols_.emplace(bytes, static_cast<SymbolId>(tokens_.size()));
  if (is_new) tokens_.push_back(-1);
  return entry->second;
}

void BpeTokenizer::AddTokens(const Vocabulary& vocabulary) {
  for (TokenId id = 0; id < size(); ++id) {
    const std::string_view text = vocabulary.tokens[id];
    const TokenType type = TypeOf(id);
    if (type == TokenType::kUserDefined) {
      AppendTokenBytes(text);
    } else if (type == TokenType::kNormal) {
      // A token that is written in other characters cannot come from text, only go to it.
      const std::optional<std::string> bytes = DecodeBytes(text);
      AppendTokenBytes(bytes.has_value() ? std::string_view(*bytes) : text);
      if (bytes.has_value() && !bytes->empty()) tokens_[Intern(*bytes)] = id;
    } else {
      AppendTokenBytes("");
    }
  }
}

void BpeTokenizer::AddMerges(const Vocabulary& vocabulary) {
  merges_.reserve(vocabulary.merges.size());
  for (size_t rank = 0; rank < vocabulary.merges.size(); ++rank) {
    const std::string_view merge = vocabulary.merges[rank];
    const size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos) continue;
    const std::optional<std::string> left = DecodeBytes(merge.substr(0, space));
    const std::optional<std::string> right = DecodeBytes(merge.substr(space + 1));
    // A pair that is not made of bytes can never stand in a text, so it is left out.
    if (!left || !right || left->empty() || right->empty()) continue;
    const MergedSymbol merged{static_cast<float>(rank), Intern(*left + *right)};
    merges_.emplace(PairKey(Intern(*left), Intern(*right)), merged);
  }
}

void BpeTokenizer::EncodeFragment(std::string_view fragment, std::vector<TokenId>& out) const {
  std::string repaired;
  if (!IsValidUtf8(fragment)) {
    repaired = ReplaceInvalidBytes(fragment);
    fragment = repaired;
  }
  std::vector<std::string_view> words;
  pre_tokenizer_.Split(fragment, words);
  SymbolMerger merger;
  for (const std::string_view word : words) EncodeWord(word, merger, out);
}

void BpeTokenizer::EncodeWord(std::string_view word, SymbolMerger& merger,
                              std::vector<TokenId>& out) const {
  if (pre_tokenizer_.ignore_merges()) {
    const auto whole = symbols_.find(word);
    if (whole != symbols_.end() && tokens_[whole->second] >= 0) {
      out.push_back(tokens_[whole->second]);
      return;
    }
  }
  std::vector<Symbol>& symbols = merger.symbols();
  symbols.clear();
  for (uint32_t i = 0; i < word.size(); ++i) {
    symbols.push_back({i, 1, static_cast<uint8_t>(word[i])});
  }
  merger.Merge([&](const Symbol& left, const Symbol& right) -> std::optional<MergedSymbol> {
    const auto merge = merges_.find(PairKey(left.id, right.id));
    if (merge == merges_.end()) return std::nullopt;
    return merge->second;
  });
  for (const Symbol& symbol : symbols) {
    if (symbol.size > 0) AppendSymbol(word.substr(symbol.begin, symbol.size), symbol.id, out);
  }
}

void BpeTokenizer::AppendSymbol(std::string_view bytes, SymbolId symbol,
                                std::vector<TokenId>& out) const {
  if (tokens_[symbol] >= 0) {
    out.push_back(tokens_[symbol]);
    return;
  }
  for (const char byte : bytes) {
    const TokenId id = tokens_[static_cast<uint8_t>(byte)];
    if (id >= 0) out.push_back(id);
  }
}

}  // namespace facet
