#ifndef FACET_BASE_STATUS_H_
#define FACET_BASE_STATUS_H_

// Somebody else's fault (client, peer, file, device) travels as absl::Status with the fact that
// helps. These helpers format the message with fmt, because Debian's absl::string_view is not
// std::string_view.

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace facet {

absl::Status MakeStatus(absl::StatusCode code, std::string_view message);
// The message as a std type.
std::string MessageOf(const absl::Status& status);
// The same code, with "`context`: " before the message. OK stays OK.
absl::Status Annotate(const absl::Status& status, std::string_view context);

template <typename... Args>
absl::Status InvalidArgument(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kInvalidArgument,
                    fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status NotFound(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kNotFound, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status Unimplemented(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kUnimplemented,
                    fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status FailedPrecondition(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kFailedPrecondition,
                    fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status ResourceExhausted(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kResourceExhausted,
                    fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status Unavailable(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kUnavailable,
                    fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status DeadlineExceeded(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kDeadlineExceeded,
                    fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status Internal(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kInternal, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace facet

#define FACET_CONCAT_INNER(a, b) a##b
#define FACET_CONCAT(a, b) FACET_CONCAT_INNER(a, b)

// Returns from the enclosing function if `expression` (an absl::Status) is not OK.
#define FACET_RETURN_IF_ERROR(expression)                              \
  do {                                                                 \
    if (absl::Status facet_status = (expression); !facet_status.ok()) { \
      return facet_status;                                             \
    }                                                                  \
  } while (false)

// FACET_ASSIGN_OR_RETURN(auto x, F()): x = *F(), or returns F's error.
#define FACET_ASSIGN_OR_RETURN(target, expression) \
  FACET_ASSIGN_OR_RETURN_INNER(FACET_CONCAT(facet_or_, __LINE__), target, expression)
#define FACET_ASSIGN_OR_RETURN_INNER(holder, target, expression) \
  auto holder = (expression);                                    \
  if (!holder.ok()) return holder.status();                      \
  target = *std::move(holder)

#endif  // FACET_BASE_STATUS_H_
