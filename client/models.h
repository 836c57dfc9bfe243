#ifndef FACET_CLIENT_MODELS_H_
#define FACET_CLIENT_MODELS_H_

#include <iosfwd>

#include "absl/status/status.h"
#include "client/connection.h"
#include "client/options.h"

namespace facet {

absl::Status RunModels(const Connection& connection, const ModelsOptions& options,
                       std::ostream& out);

}  // namespace facet

#endif  // FACET_CLIENT_MODELS_H_
