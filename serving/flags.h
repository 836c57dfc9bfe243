#ifndef FACET_SERVING_FLAGS_H_
#define FACET_SERVING_FLAGS_H_

// Command lines over Abseil's flags: the flags are ABSL_FLAGs; the parsing and the help are ours,
// so that dashes and underscores are the same (--max-tokens, --max_tokens), a misspelt flag gets a
// suggestion and exit code 2, and --help shows our flags only.

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace facet {

struct CommandLine {
  std::vector<std::string> positional;  // also a lone "-", and everything after "--"
  std::vector<std::string> flags;       // names of those that were set, with underscores
};

// Sets every flag of the command line, in order. Accepts --flag=value, --flag value, -flag, and
// for booleans --flag, --noflag, --no-flag; passes over what WantsHelp() looks for. Errors are
// sentences for the user.
absl::StatusOr<CommandLine> ParseFlags(int argc, char** argv);

// For a main() without subcommands: as above, but --help prints `usage` and the flags to stdout and
// exits 0, an error is printed to stderr and exits 2. A binary without positional arguments says so
// with `positional_max` 0.
std::vector<std::string> ParseFlagsOrExit(int argc, char** argv, std::string_view usage,
                                          size_t positional_max);

// True if --help, -h or -help stands on the command line before "--".
bool WantsHelp(int argc, char** argv);

// The named flags (empty: all of this binary's) with their help and defaults, in the given
// (else alphabetical) order, one paragraph each.
std::string DescribeFlags(std::span<const std::string_view> names = {});

}  // namespace facet

#endif  // FACET_SERVING_FLAGS_H_
