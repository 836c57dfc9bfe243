#ifndef FACET_SERVING_ADDRESS_H_
#define FACET_SERVING_ADDRESS_H_

// Listening addresses as flags give them: "0.0.0.0:8470", "localhost:0", "[::1]:8470",
// "unix:/run/facet.sock".

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace facet {

bool IsUnixAddress(std::string_view address);

// "127.0.0.1:0" with port 43211 becomes "127.0.0.1:43211".
std::string WithPort(std::string_view address, int port);

// Why nothing can listen on `address`, as a sentence that names it: the port is in use, the host
// has no such interface, the form is wrong. OK if it could be bound just now. For a clear message
// after a server failed to start and before one would take over a live unix socket.
absl::Status ProbeListen(std::string_view address);

// Replaces `path` by a file that holds `address` and a newline, in one step: a reader sees all of
// it or nothing. This is how a process that listens on port 0 tells its launcher (--address_file).
absl::Status WriteAddressFile(const std::string& path, std::string_view address);

}  // namespace facet

#endif  // FACET_SERVING_ADDRESS_H_
