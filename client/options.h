#ifndef FACET_CLIENT_OPTIONS_H_
#define FACET_CLIENT_OPTIONS_H_

// What each command does, as values; options.cc fills them from the flags.

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/connection.h"
#include "facet/v1/inference.pb.h"

namespace facet {

struct GenerateOptions {
  v1::GenerateRequest request;
  bool json = false;
};

struct ChatOptions {
  v1::GenerateRequest request;  // everything but the prompt
  std::string system;           // the system message; empty: none
  bool interactive = false;     // somebody types: show prompts
};

constexpr std::chrono::seconds kReadyTimeout{60};

struct StatusOptions {
  bool json = false;
  std::optional<std::chrono::milliseconds> watch;  // show again so often
  bool clear_screen = false;                       // before each showing
  int until_ready = 0;  // first wait for this many ready groups, for the connection's timeout or
                        // kReadyTimeout
};

struct ModelsOptions {
  bool json = false;
};

// What the processors that the ranks of a group run on can do together.
struct MachineLimits {
  double read_gb_s = 0;
  double int8_gop_s = 0;
  double f32_gop_s = 0;
};

struct BenchOptions {
  std::string model;
  int streams = 1;  // requests that run at the same time; with a rate: at most
  // Requests that arrive per second, whether earlier ones are done or not (an open loop); 0: each
  // stream sends one after the other.
  double rate = 0;
  int requests = 16;  // in all, where seconds is not set
  std::optional<std::chrono::milliseconds> duration;
  int prompt_tokens = 128;
  int max_tokens = 128;
  std::optional<float> temperature;     // unset: the router's default
  uint64_t seed = 1;                    // of the prompts, of the sampling and of the arrivals
  bool profile = false;                 // show what each operation of the steps took
  std::optional<MachineLimits> limits;  // to compare it with
  bool json = false;
  bool progress = false;  // on stderr
};

// The commands, each with its line of help and the names of its flags.
struct CommandHelp {
  std::string_view name;
  std::string_view summary;  // for the list of commands
  std::string_view synopsis;
  std::string_view description;
  std::vector<std::string_view> flags;
};
std::span<const CommandHelp> Commands();

// From the flags as they are now. `texts` are the positional arguments after the command: prompts,
// where "-" is standard input. Errors name the flag.
absl::StatusOr<ConnectionOptions> ConnectionOptionsFromFlags();
absl::StatusOr<GenerateOptions> GenerateOptionsFromFlags(const std::vector<std::string>& texts);
absl::StatusOr<ChatOptions> ChatOptionsFromFlags();
absl::StatusOr<StatusOptions> StatusOptionsFromFlags();
absl::StatusOr<ModelsOptions> ModelsOptionsFromFlags();
absl::StatusOr<BenchOptions> BenchOptionsFromFlags();

}  // namespace facet

#endif  // FACET_CLIENT_OPTIONS_H_
