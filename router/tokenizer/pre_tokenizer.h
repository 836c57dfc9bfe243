#ifndef FACET_ROUTER_TOKENIZER_PRE_TOKENIZER_H_
#define FACET_ROUTER_TOKENIZER_PRE_TOKENIZER_H_

#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

// PCRE2's compiled pattern (pcre2.h), so that its header stays out of ours.
struct pcre2_real_code_8;

namespace facet {

// Cuts text into the words that byte-level BPE merges within, by the regular expressions that the
// model's family was trained with. Immutable and thread-safe after Create.
class PreTokenizer {
 public:
  // `name` is the value of tokenizer.ggml.pre. Unimplemented, with the names that are known, for
  // any other: splitting text another way degrades the answers without a sign.
  static absl::StatusOr<PreTokenizer> Create(std::string_view name);

  // Appends the words of `text` to `words`: views that together are all of it. Linear in its
  // size whatever it holds. REQUIRES: IsValidUtf8(text).
  void Split(std::string_view text, std::vector<std::string_view>& words) const;

  // Whether a word that is a token is taken whole, even where no merges lead to it.
  bool ignore_merges() const { return ignore_merges_; }
  // Whether the family's texts begin with bos where the file does not say.
  bool add_bos() const { return add_bos_; }

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  using Code = std::unique_ptr<pcre2_real_code_8, FreeCode>;

  PreTokenizer() = default;

  static absl::StatusOr<Code> Compile(std::string_view pattern);

  std::vector<Code> stages_;  // each splits every word that the one before left
  bool ignore_merges_ = false;
  bool add_bos_ = false;
};

}  // namespace facet

#endif  // FACET_ROUTER_TOKENIZER_PRE_TOKENIZER_H_
