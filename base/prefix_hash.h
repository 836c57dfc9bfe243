#ifndef FACET_BASE_PREFIX_HASH_H_
#define FACET_BASE_PREFIX_HASH_H_

// Names of prompt prefixes. A prefix of whole KV blocks is named by a chain of links, one per
// block: engine and router compute the same names, so the router knows which group has a prefix.
//
// The hash is not cryptographic: the engine compares the tokens too before it reuses a block, and a
// router that is misled only chooses a slower group. Tenants have different salts, which routers
// derive from their names.

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/prng.h"

namespace facet {

// The link of a block whose predecessor's link (or, for the first block, the salt) is `previous`.
constexpr uint64_t PrefixLink(uint64_t previous, std::span<const TokenId> block) {
  uint64_t link = Mix64(previous ^ block.size());
  for (const TokenId token : block) link = Mix64(link ^ static_cast<uint32_t>(token));
  return link;
}

// The links of all whole blocks of `tokens`, first to last.
inline std::vector<uint64_t> PrefixLinks(uint64_t salt, std::span<const TokenId> tokens,
                                         int block_tokens) {
  std::vector<uint64_t> links;
  const auto block = static_cast<size_t>(block_tokens);
  links.reserve(tokens.size() / block);
  for (size_t end = block; end <= tokens.size(); end += block) {
    salt = PrefixLink(salt, tokens.subspan(end - block, block));
    links.push_back(salt);
  }
  return links;
}

}  // namespace facet

#endif  // FACET_BASE_PREFIX_HASH_H_
