#ifndef FACET_ROUTER_CORE_CACHE_SALT_H_
#define FACET_ROUTER_CORE_CACHE_SALT_H_

#include <cstdint>
#include <string_view>

#include "base/prng.h"

namespace facet {

// The salt of a tenant's prefix links (base/prefix_hash.h): the same on every router, so that a
// tenant finds its prefixes whichever router it asks, and no other tenant finds them.
constexpr uint64_t CacheSalt(std::string_view tenant) {
  uint64_t salt = Mix64(tenant.size());
  for (const char byte : tenant) salt = Mix64(salt ^ static_cast<uint8_t>(byte));
  return salt;
}

}  // namespace facet

#endif  // FACET_ROUTER_CORE_CACHE_SALT_H_
