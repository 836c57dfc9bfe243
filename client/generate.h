#ifndef FACET_CLIENT_GENERATE_H_
#define FACET_CLIENT_GENERATE_H_

#include <iosfwd>

#include "absl/status/status.h"
#include "client/connection.h"
#include "client/options.h"

namespace facet {

// One call. Answers go to `out`, in order, each as it comes and with a newline at its end; headings
// between several answers, rates and usage go to `err`.
absl::Status RunGenerate(const Connection& connection, const GenerateOptions& options,
                         std::ostream& out, std::ostream& err);

}  // namespace facet

#endif  // FACET_CLIENT_GENERATE_H_
