#ifndef FACET_ROUTER_TOKENIZER_SPECIAL_CUTTER_H_
#define FACET_ROUTER_TOKENIZER_SPECIAL_CUTTER_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/ids.h"

namespace facet {

// Finds the tokens that are cut out of a text whole before anything else looks at it.
//
// Longest first over the whole text: an occurrence of a longer token wins over every shorter one
// that overlaps it, wherever it stands; among equally long ones the lower id wins, then the
// leftmost place. This is what llama.cpp's loop over all tokens and all fragments comes to, without
// its tokens x text cost.
//
// Thread-safe once all tokens are added.
class SpecialCutter {
 public:
  // `always`: cut even where special parsing is off (user-defined tokens).
  // REQUIRES: `text` is not empty and was not added before; ids ascend.
  void Add(std::string_view text, TokenId id, bool always);

  struct Cut {
    uint32_t begin;
    uint32_t size;
    TokenId id;
  };
  // The cuts of `text`, from left to right, without overlap.
  std::vector<Cut> Find(std::string_view text, bool parse_special) const;

 private:
  struct Node {
    TokenId token = -1;  // the token that ends here
    bool always = false;
  };

  // The longest token at `text`'s beginning that has at most `limit` bytes; size 0 if none.
  Cut LongestAt(std::string_view text, uint32_t begin, size_t limit, bool parse_special) const;

  std::vector<Node> nodes_ = {Node{}};
  absl::flat_hash_map<uint64_t, uint32_t> edges_;  // node << 8 | byte -> node
  bool begins_[256] = {};                          // bytes that some token begins with
};

}  // namespace facet

#endif  // FACET_ROUTER_TOKENIZER_SPECIAL_CUTTER_H_
