#ifndef FACET_ROUTER_TOKENIZER_UTF8_H_
#define FACET_ROUTER_TOKENIZER_UTF8_H_

// Walking over UTF-8 that may be broken. "Well-formed" is Unicode's Table 3-7: no overlong forms,
// no surrogates, nothing above U+10FFFF.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace facet {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

enum class Utf8Kind {
  kCharacter,  // a whole character
  kPartial,    // the text ends inside what could still become a character
  kInvalid,    // cannot become a character, whatever follows
};

struct Utf8Step {
  Utf8Kind kind;
  // Of the character; of the partial one; of the maximal subpart that one U+FFFD replaces
  // (The Unicode Standard, section 3.9, "U+FFFD Substitution of Maximal Subparts").
  size_t bytes;
};

// What `text` begins with. REQUIRES: !text.empty().
Utf8Step ScanUtf8(std::string_view text);

bool IsValidUtf8(std::string_view text);

// `text` with a U+FFFD for every byte that is not part of a well-formed character: byte-level BPE
// is defined on characters, and llama.cpp replaces byte by byte.
std::string ReplaceInvalidBytes(std::string_view text);

// The code point of `character`. REQUIRES: it is one well-formed character.
uint32_t DecodeCharacter(std::string_view character);

// Appends the UTF-8 form of `code_point`. REQUIRES: a Unicode scalar value.
void AppendUtf8(uint32_t code_point, std::string& out);

// Without leading and trailing white space as Python's str.strip() sees it, because the reference
// chat templates trim with that. REQUIRES: IsValidUtf8(text).
std::string_view TrimWhiteSpace(std::string_view text);

}  // namespace facet

#endif  // FACET_ROUTER_TOKENIZER_UTF8_H_
