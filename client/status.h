#ifndef FACET_CLIENT_STATUS_H_
#define FACET_CLIENT_STATUS_H_

#include <iosfwd>

#include "absl/status/status.h"
#include "client/connection.h"
#include "client/options.h"

namespace facet {

// Shows the router's groups once, or again and again until a call fails.
absl::Status RunStatus(const Connection& connection, const StatusOptions& options,
                       std::ostream& out);

}  // namespace facet

#endif  // FACET_CLIENT_STATUS_H_
