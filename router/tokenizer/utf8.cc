#include "router/tokenizer/utf8.h"

#include <algorithm>
#include <array>

#include "base/check.h"

namespace facet {
namespace {

uint8_t ByteAt(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

struct Lead {
  int length;          // of the character; 0 where no character begins with this byte
  uint8_t second_min;  // the range of the second byte; all later ones are 80..BF
  uint8_t second_max;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

bool IsPythonSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

}  // namespace

Utf8Step ScanUtf8(std::string_view text) {
  FACET_CHECK(!text.empty());
  const Lead lead = LeadOf(ByteAt(text, 0));
  if (lead.length == 0) return {Utf8Kind::kInvalid, 1};
  const size_t length = static_cast<size_t>(lead.length);
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Kind::kPartial, i};
    const uint8_t low = i == 1 ? lead.second_min : 0x80;
    const uint8_t high = i == 1 ? lead.second_max : 0xBF;
    if (ByteAt(text, i) < low || ByteAt(text, i) > high) return {Utf8Kind::kInvalid, i};
  }
  return {Utf8Kind::kCharacter, length};
}

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = ScanUtf8(text);
    if (step.kind != Utf8Kind::kCharacter) return false;
    text.remove_prefix(step.bytes);
  }
  return true;
}

std::string ReplaceInvalidBytes(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = ScanUtf8(text);
    const bool whole = step.kind == Utf8Kind::kCharacter;
    out += whole ? text.substr(0, step.bytes) : kReplacementCharacter;
    text.remove_prefix(whole ? step.bytes : 1);
  }
  return out;
}

uint32_t DecodeCharacter(std::string_view character) {
  const uint8_t lead = ByteAt(character, 0);
  if (character.size() == 1) return lead;
  uint32_t value = lead & (0x7Fu >> character.size());
  for (size_t i = 1; i < character.size(); ++i) value = value << 6 | (ByteAt(character, i) & 0x3Fu);
  return value;
}

void AppendUtf8(uint32_t c, std::string& out) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((c >> shift) & 0x3F)); };
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | (c >> 6));
    tail(0);
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | (c >> 12));
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xF0 | (c >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

std::string_view TrimWhiteSpace(std::string_view text) {
  size_t begin = text.size();
  size_t end = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = ScanUtf8(text.substr(at)).bytes;
    if (!IsPythonSpace(DecodeCharacter(text.substr(at, bytes)))) {
      begin = std::min(begin, at);
      end = at + bytes;
    }
    at += bytes;
  }
  return begin < end ? text.substr(begin, end - begin) : std::string_view();
}

}  // namespace facet
