// facet: the command-line client of a Facet cluster. See `facet --help`.

#include <fmt/format.h>
#include <signal.h>
#include <cstdlib>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/check.h"
#include "base/status.h"
#include "client/bench.h"
#include "client/chat.h"
#include "client/connection.h"
#include "client/generate.h"
#include "client/models.h"
#include "client/options.h"
#include "client/status.h"
#include "serving/flags.h"
#include "serving/log.h"
#include "serving/shutdown.h"

namespace facet {
namespace {

constexpr int kFailed = 1;
constexpr int kMisused = 2;

const CommandHelp* FindCommand(std::string_view name) {
  for (const CommandHelp& command : Commands()) {
    if (command.name == name) return &command;
  }
  return nullptr;
}

void PrintHelp() {
  fmt::print(
      "facet: asks a Facet cluster.\n\n"
      "  facet COMMAND [flags]          facet COMMAND --help explains the command's flags\n\n");
  for (const CommandHelp& command : Commands()) {
    fmt::print("  {:<10} {}\n", command.name, command.summary);
  }
  fmt::print(
      "\nThe routers are --endpoint host:port,..., else the environment's FACET_ENDPOINTS, else "
      "localhost:8470.\nExit codes: 0 answered, 1 failed, 2 misused.\n");
}

void PrintHelp(const CommandHelp& command) {
  fmt::print("{}\n\n{}\n\nFlags (dashes and underscores are the same):\n{}", command.synopsis,
             command.description, DescribeFlags(command.flags));
}

int Misuse(std::string_view message, std::string_view command) {
  fmt::print(stderr, "facet: {} (see facet {}{}--help)\n", message, command,
             command.empty() ? "" : " ");
  return kMisused;
}

absl::Status RefuseForeignFlags(const CommandHelp& command, const CommandLine& line) {
  for (const std::string& flag : line.flags) {
    if (std::find(command.flags.begin(), command.flags.end(), flag) == command.flags.end()) {
      return InvalidArgument("--{} is not a flag of facet {}", flag, command.name);
    }
  }
  return absl::OkStatus();
}

absl::Status RunChat(const ConnectionOptions& where, const ChatOptions& options) {
  SignalWatcher::Block({SIGINT});  // before gRPC starts threads
  const Connection connection(where);
  ChatSession session(connection, options, std::cin, std::cout, std::cerr);
  const SignalWatcher interrupt({SIGINT}, [&session](int) { session.Interrupt(); });
  return session.Run();
}

// Runs `run` with the options, if they are sound.
template <typename Options, typename Run>
int With(const absl::StatusOr<Options>& options, std::string_view command, const Run& run) {
  const absl::StatusOr<ConnectionOptions> where = ConnectionOptionsFromFlags();
  if (!where.ok()) return Misuse(MessageOf(where.status()), command);
  if (!options.ok()) return Misuse(MessageOf(options.status()), command);
  const absl::Status status = run(*where, *options);
  if (status.ok()) return 0;
  std::cout << std::flush;
  fmt::print(stderr, "facet: {}: {}\n", absl::StatusCodeToString(status.code()), MessageOf(status));
  return kFailed;
}

int Dispatch(std::string_view name, const std::vector<std::string>& arguments) {
  if (name == "generate") {
    return With(GenerateOptionsFromFlags(arguments), name,
                [](const ConnectionOptions& where, const GenerateOptions& options) {
                  return RunGenerate(Connection(where), options, std::cout, std::cerr);
                });
  }
  if (!arguments.empty()) {
    return Misuse(fmt::format("unexpected argument '{}'", arguments[0]), name);
  }
  if (name == "chat") return With(ChatOptionsFromFlags(), name, RunChat);
  if (name == "status") {
    return With(StatusOptionsFromFlags(), name,
                [](const ConnectionOptions& where, const StatusOptions& options) {
                  return RunStatus(Connection(where), options, std::cout);
                });
  }
  if (name == "models") {
    return With(ModelsOptionsFromFlags(), name,
                [](const ConnectionOptions& where, const ModelsOptions& options) {
                  return RunModels(Connection(where), options, std::cout);
                });
  }
  FACET_CHECK(name == "bench");
  return With(BenchOptionsFromFlags(), name,
              [](const ConnectionOptions& where, const BenchOptions& options) {
                return RunBench(Connection(where), options, std::cout, std::cerr);
              });
}

int Main(int argc, char** argv) {
  // Debian's Abseil looks for lock cycles at every lock, gRPC's included, under one global lock.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  const bool help = WantsHelp(argc, argv);
  const absl::StatusOr<CommandLine> line = ParseFlags(argc, argv);
  if (help && line.ok() && line->positional.empty()) {
    PrintHelp();
    return 0;
  }
  if (!line.ok()) return Misuse(MessageOf(line.status()), "");
  if (line->positional.empty()) return Misuse("no command", "");
  const CommandHelp* command = FindCommand(line->positional[0]);
  if (command == nullptr) {
    return Misuse(fmt::format("'{}' is not a command", line->positional[0]), "");
  }
  if (help) {
    PrintHelp(*command);
    return 0;
  }
  if (const absl::Status status = RefuseForeignFlags(*command, *line); !status.ok()) {
    return Misuse(MessageOf(status), command->name);
  }
  const absl::Status log = InitLog("facet", "warning");  // gRPC's complaints
  FACET_CHECK(log.ok());
  return Dispatch(command->name, {line->positional.begin() + 1, line->positional.end()});
}

}  // namespace
}  // namespace facet

int main(int argc, char** argv) {
  // Between two calls nothing polls a channel that connects but gRPC's backup, every 5 s otherwise:
  // who asks before the router listens would wait for it.
  setenv("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "50", /*overwrite=*/0);
  return facet::Main(argc, argv);
}
