#ifndef FACET_TESTS_BASE_PATIENCE_H_
#define FACET_TESTS_BASE_PATIENCE_H_

#include <chrono>

namespace facet::testing {

// For what must come: more than a machine stands still.
inline constexpr std::chrono::milliseconds kLong(120'000);

}  // namespace facet::testing

#endif  // FACET_TESTS_BASE_PATIENCE_H_
