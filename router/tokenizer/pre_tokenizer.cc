#include "router/tokenizer/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/status.h"

namespace facet {
namespace {

// The patterns are facts of the model families (their tokenizer.json), written for PCRE2 with two
// changes. White space is spelled out as <s> and <S>, because PCRE2's \s also has U+180E, which
// Unicode no longer counts. And where a pattern could look at the same run of text from each of
// its characters again, it is anchored so that it cannot (marked below).
constexpr std::string_view kSpace =
    R"(\x{9}-\x{D} \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

// Without OpenAI's final alternative "|\s+", what that would match stays between matches, which is
// a word just as well; with it every character is matched.
constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^<s>\p{L}\p{N}]+|[<s>]+(?![^<s>])|[<s>]+)";

constexpr std::string_view kLlama3 =
    R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|)"
    R"(\p{N}{1,3}| ?[^<s>\p{L}\p{N}]+[\r\n]*|[<s>]*[\r\n]+|[<s>]+(?![^<s>])|[<s>]+)";

constexpr std::string_view kQwen2 =
    R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|)"
    R"(\p{N}| ?[^<s>\p{L}\p{N}]+[\r\n]*|[<s>]*[\r\n]+|[<s>]+(?![^<s>])|[<s>]+)";

constexpr std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|)"
    R"( ?[^<s>\p{L}\p{N}]+[\r\n/]*|[<s>]*[\r\n]+|[<s>]+(?![^<s>])|[<s>]+)";

// The alphabetic letters of this family: not \p{L}, but the list it was trained with.
constexpr std::string_view kDeepseekLetters =
    R"([<s>]?[)"
    R"(\x{41}-\x{5A}\x{61}-\x{7A}\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA})"
    R"(\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377})"
    R"(\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5})"
    R"(\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5})"
    R"(\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77})"
    R"(\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D})"
    R"(\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4})"
    R"(\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3})"
    R"(\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107})"
    R"(\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D})"
    R"(\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184})"
    R"(\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D})"
    R"(\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF})"
    R"(\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A})"
    R"(\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2})"
    R"(\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943})"
    R"(]+)";

constexpr std::string_view kDeepseekPunctuation =
    R"([<s>]?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+)";

// "\s+$". A match can only begin where the run of white space does, and the lookbehind says so:
// without it PCRE2, where it has no JIT, walks from every space of a run to the run's end in vain.
constexpr std::string_view kTrailingSpace = R"((?<![<s>])[<s>]++\z)";

constexpr std::string_view kDeepseekV3 =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|)"
    R"( ?[\p{P}\p{S}]+[\r\n]*|[<s>]*[\r\n]+|[<s>]+(?![^<s>])|[<s>]+)";

struct Family {
  std::vector<std::string_view> names;
  std::vector<std::string_view> stages;
  bool ignore_merges = false;
  bool add_bos = false;
};

const std::vector<Family>& Families() {
  static const auto* families = new std::vector<Family>{
      {{"gpt-2"}, {kGpt2}},
      {{"smollm"}, {R"(\p{N})", kGpt2}},
      {{"llama-bpe", "llama3", "llama-v3", "pixtral"}, {kLlama3}, true, true},
      {{"qwen2", "deepseek-r1-qwen"}, {kQwen2}},
      {{"tekken"}, {kTekken}, true, true},
      {{"deepseek-llm"},
       {R"([\r\n])", kDeepseekLetters, kDeepseekPunctuation, kTrailingSpace,
        R"([\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+)", R"(\p{N}+)"}},
      {{"deepseek-v3"},
       {R"(\p{N}{1,3})", R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)", kDeepseekV3}},
  };
  return *families;
}

std::string ExpandSpace(std::string_view pattern) {
  constexpr std::string_view kMark = "<s>";
  std::string out;
  for (size_t at = 0; at < pattern.size();) {
    const bool mark = pattern.substr(at).starts_with(kMark);
    out += mark ? kSpace : pattern.substr(at, 1);
    at += mark ? kMark.size() : 1;
  }
  return out;
}

absl::Status UnknownName(std::string_view name) {
  std::string known;
  for (const Family& family : Families()) {
    for (const std::string_view alias : family.names) known += fmt::format(" {}", alias);
  }
  return Unimplemented(
      "tokenizer.ggml.pre is '{}': texts would be split differently than in training; known:{}",
      name, known);
}

// PCRE2's memory for matching, for one text.
class Matcher {
 public:
  explicit Matcher(size_t text_size)
      : data_(pcre2_match_data_create(1, nullptr)), context_(pcre2_match_context_create(nullptr)) {
    FACET_CHECK(data_ != nullptr && context_ != nullptr, "PCRE2 has no memory");
    // A run as long as the text may be walked once there and once back. More than a small multiple
    // of that would be a pattern of ours that is not linear.
    const size_t limit = 8 * text_size + 10'000;
    pcre2_set_match_limit(context_.get(), static_cast<uint32_t>(std::min<size_t>(limit, ~0u)));
  }

  // Cuts `text` into the matches of `code` and what lies between them.
  void Cut(const pcre2_code* code, std::string_view text, std::vector<std::string_view>& words) {
    size_t done = 0;
    while (done < text.size() && Find(code, text, done)) {
      const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data_.get());
      if (range[0] > done) words.push_back(text.substr(done, range[0] - done));
      words.push_back(text.substr(range[0], range[1] - range[0]));
      done = range[1];
    }
    if (done < text.size()) words.push_back(text.substr(done));
  }

 private:
  struct Free {
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
    void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  };

  // Whether there is a match from `at` on. None is empty.
  bool Find(const pcre2_code* code, std::string_view text, size_t at) {
    const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                  PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, data_.get(), context_.get());
    FACET_CHECK(found >= 0 || found == PCRE2_ERROR_NOMATCH, "PCRE2 error {} at byte {} of {}",
                found, at, text.size());
    return found >= 0;
  }

  std::unique_ptr<pcre2_match_data, Free> data_;
  std::unique_ptr<pcre2_match_context, Free> context_;
};

}  // namespace

void PreTokenizer::FreeCode::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

absl::StatusOr<PreTokenizer::Code> PreTokenizer::Compile(std::string_view pattern) {
  const std::string source = ExpandSpace(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(),
                          PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK, &error, &offset, nullptr));
  if (code == nullptr) {
    return Internal("pre-tokenizer pattern {}: PCRE2 error {} at {}", source, error, offset);
  }
  // Where the platform has no JIT, or forbids writable code pages, the interpreter does the same.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return code;
}

absl::StatusOr<PreTokenizer> PreTokenizer::Create(std::string_view name) {
  for (const Family& family : Families()) {
    if (std::find(family.names.begin(), family.names.end(), name) == family.names.end()) continue;
    PreTokenizer result;
    result.ignore_merges_ = family.ignore_merges;
    result.add_bos_ = family.add_bos;
    for (const std::string_view pattern : family.stages) {
      FACET_ASSIGN_OR_RETURN(Code code, Compile(pattern));
      result.stages_.push_back(std::move(code));
    }
    return result;
  }
  return UnknownName(name);
}

void PreTokenizer::Split(std::string_view text, std::vector<std::string_view>& words) const {
  Matcher matcher(text.size());
  std::vector<std::string_view> pieces = {text};
  for (const Code& stage : stages_) {
    std::vector<std::string_view> next;
    for (const std::string_view piece : pieces) matcher.Cut(stage.get(), piece, next);
    pieces = std::move(next);
  }
  words.insert(words.end(), pieces.begin(), pieces.end());
}

}  // namespace facet
