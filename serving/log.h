#ifndef FACET_SERVING_LOG_H_
#define FACET_SERVING_LOG_H_

// The log of a process: spdlog's default logger on stderr, one line per message, UTC:
//   2026-03-01T12:00:00.123Z I facet-router: group 10.0.0.2:8480 is ready
// Control characters inside a message are escaped, so nothing a client sends can forge a line.
// Callers use spdlog::info() and its siblings directly.

#include <string_view>

#include "absl/status/status.h"

namespace facet {

// Call once, from main(), before other threads log. `level` is one of trace, debug, info, warning,
// error, off; gRPC's own messages come through the same logger (its errors as warnings, the rest
// as debug).
absl::Status InitLog(std::string_view process, std::string_view level);

}  // namespace facet

#endif  // FACET_SERVING_LOG_H_
