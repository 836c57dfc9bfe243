#ifndef FACET_BASE_CHECK_H_
#define FACET_BASE_CHECK_H_

// Our own bugs. On in production too: a process that doubts itself stops, and the router moves
// its work.

#include <fmt/format.h>

#include <string>
#include <utility>

namespace facet {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const std::string& message);
inline std::string CheckMessage() { return {}; }
template <typename... Args>
std::string CheckMessage(fmt::format_string<Args...> format, Args&&... args) {
  return fmt::format(format, std::forward<Args>(args)...);
}
}  // namespace facet

// FACET_CHECK(n > 0); FACET_CHECK(n > 0, "n is {}", n);
#define FACET_CHECK(condition, ...)                                        \
  do {                                                                     \
    if (__builtin_expect(!(condition), 0)) {                               \
      ::facet::CheckFailed(__FILE__, __LINE__, #condition,                 \
                           ::facet::CheckMessage(__VA_ARGS__));            \
    }                                                                      \
  } while (false)

#endif  // FACET_BASE_CHECK_H_
