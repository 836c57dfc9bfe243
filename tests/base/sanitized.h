#ifndef FACET_TESTS_BASE_SANITIZED_H_
#define FACET_TESTS_BASE_SANITIZED_H_

// How thoroughly tests of many cases go about it under a sanitizer, which makes them five to fifty
// times as slow. It looks at paths through the code, so a few cases that take all of them serve it;
// that every case gives the right bits is the Release build's to show.

#include <vector>

namespace facet {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// `all`, or `few` of them in a sanitizer's build.
template <typename T>
std::vector<T> Cases(std::vector<T> all, std::vector<T> few) {
  return kSanitized ? few : all;
}

}  // namespace facet

#endif  // FACET_TESTS_BASE_SANITIZED_H_
