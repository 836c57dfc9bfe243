// Runs the simulator over seeds.
//
//   simulate --seed N [--trace]      one world; with its readable trace
//   simulate --seeds A..B [--jobs N] [--until-find]
//
// Worlds of a range run in child processes, so that a CHECK that stops one costs only its seed.
// Exit status: 0 all is well; 1 some invariant broke; 2 misuse; 3 only CHECKs stopped worlds.

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tests/simulation/world.h"

namespace facet::sim {
namespace {

struct Arguments {
  uint64_t first = 1, last = 0;
  int jobs = 1;
  bool trace = false;
  bool single = false;
  bool until_find = false;
  std::string program;
};

// What a child says of one seed, as one write to the pipe.
struct Line {
  uint64_t seed = 0;
  int64_t events = 0;
  bool begun = false;  // the world begins; else it has ended
  Sights sights;
  char failure[1024] = {};
};

struct Child {
  pid_t pid = 0;
  int pipe = -1;
  uint64_t next = 0, last = 0;     // seeds to run
  std::optional<uint64_t> inside;  // the seed whose world runs
};

int Misuse() {
  std::fputs(
      "usage: simulate --seed N [--trace]\n"
      "       simulate --seeds A..B [--jobs N] [--until-find]\n",
      stderr);
  return 2;
}

std::optional<uint64_t> Number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

bool ParseSeeds(std::string_view text, Arguments* arguments) {
  const size_t dots = text.find("..");
  if (dots == std::string_view::npos) return false;
  const auto first = Number(text.substr(0, dots)), last = Number(text.substr(dots + 2));
  if (!first || !last || *last < *first) return false;
  arguments->first = *first;
  arguments->last = *last;
  return true;
}

std::optional<Arguments> Parse(int argc, char** argv) {
  Arguments arguments;
  arguments.program = argv[0];
  bool chosen = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--trace") {
      arguments.trace = true;
      continue;
    }
    if (name == "--until-find") {
      arguments.until_find = true;
      continue;
    }
    if (++i == argc) return std::nullopt;
    if (name == "--seed") {
      const auto seed = Number(argv[i]);
      if (!seed) return std::nullopt;
      arguments.first = arguments.last = *seed;
      arguments.single = chosen = true;
    } else if (name == "--seeds") {
      if (!ParseSeeds(argv[i], &arguments)) return std::nullopt;
      chosen = true;
    } else if (name == "--jobs") {
      const auto jobs = Number(argv[i]);
      if (!jobs || *jobs < 1 || *jobs > 64) return std::nullopt;
      arguments.jobs = static_cast<int>(*jobs);
    } else {
      return std::nullopt;
    }
  }
  if (!chosen || (arguments.trace && !arguments.single)) return std::nullopt;
  return arguments;
}

void TellFailure(const Arguments& arguments, uint64_t seed, const char* what) {
  std::printf("seed %llu: %s\n  replay: %s --seed %llu --trace\n",
              static_cast<unsigned long long>(seed), what, arguments.program.c_str(),
              static_cast<unsigned long long>(seed));
  std::fflush(stdout);
}

int RunOne(const Arguments& arguments) {
  const Outcome outcome = RunWorld(arguments.first, arguments.trace);
  std::printf("seed %llu: %lld events, trace hash %016llx\n%s\n",
              static_cast<unsigned long long>(arguments.first),
              static_cast<long long>(outcome.events), static_cast<unsigned long long>(outcome.hash),
              outcome.sights.Text().c_str());
  if (outcome.failure.empty()) return 0;
  TellFailure(arguments, arguments.first, outcome.failure.c_str());
  return 1;
}

[[noreturn]] void RunChild(const Child& child, int out, bool until_find) {
  for (uint64_t seed = child.next; seed <= child.last; ++seed) {
    Line line{.seed = seed, .begun = true};
    if (write(out, &line, sizeof(line)) != sizeof(line)) _exit(4);
    const Outcome outcome = RunWorld(seed, /*print_trace=*/false);
    line.begun = false;
    line.events = outcome.events;
    line.sights = outcome.sights;
    std::strncpy(line.failure, outcome.failure.c_str(), sizeof(line.failure) - 1);
    if (write(out, &line, sizeof(line)) != sizeof(line)) _exit(4);
    if (until_find && !outcome.failure.empty()) break;
  }
  _exit(0);
}

void Fork(Child* child, bool until_find) {
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  std::fflush(stdout);
  child->pid = fork();
  if (child->pid < 0) std::abort();
  if (child->pid == 0) {
    close(ends[0]);
    RunChild(*child, ends[1], until_find);
  }
  close(ends[1]);
  child->pipe = ends[0];
  child->inside.reset();
}

bool ReadLine(int pipe, Line* line) {
  size_t got = 0;
  while (got < sizeof(*line)) {
    const ssize_t n = read(pipe, reinterpret_cast<char*>(line) + got, sizeof(*line) - got);
    if (n <= 0) return false;
    got += static_cast<size_t>(n);
  }
  return true;
}

// What all children have said so far.
struct Tally {
  int64_t worlds = 0, events = 0, found = 0, stopped = 0;
  Sights sights;
};

// The child has died. Starts another one behind the seed that stopped it; false if there is no
// more to do.
bool Continue(const Arguments& arguments, Child* child, Tally* tally) {
  int status = 0;
  waitpid(child->pid, &status, 0);
  close(child->pipe);
  if (!child->inside) return false;
  ++tally->stopped;
  const std::string how = WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "the process ended";
  TellFailure(arguments, *child->inside, ("STOPPED: " + how).c_str());
  child->next = *child->inside + 1;
  if (child->next > child->last) return false;
  Fork(child, arguments.until_find);
  return true;
}

void Count(const Arguments& arguments, const Line& line, Child* child, Tally* tally) {
  child->inside = line.seed;
  if (line.begun) return;
  child->inside.reset();
  ++tally->worlds;
  tally->events += line.events;
  tally->sights.Add(line.sights);
  if (line.failure[0] == '\0') return;
  ++tally->found;
  TellFailure(arguments, line.seed, line.failure);
}

std::vector<Child> Divide(const Arguments& arguments) {
  const uint64_t seeds = arguments.last - arguments.first + 1;
  const uint64_t jobs = std::min<uint64_t>(seeds, static_cast<uint64_t>(arguments.jobs));
  std::vector<Child> children;
  for (uint64_t i = 0; i < jobs; ++i) {
    children.push_back({.next = arguments.first + seeds * i / jobs,
                        .last = arguments.first + seeds * (i + 1) / jobs - 1});
  }
  return children;
}

Tally RunAll(const Arguments& arguments) {
  Tally tally;
  std::vector<Child> children = Divide(arguments);
  for (Child& child : children) Fork(&child, arguments.until_find);
  while (!children.empty() && !(arguments.until_find && tally.found > 0)) {
    std::vector<pollfd> polls;
    for (const Child& child : children) polls.push_back({child.pipe, POLLIN, 0});
    poll(polls.data(), polls.size(), -1);
    for (size_t i = children.size(); i-- > 0;) {
      if (polls[i].revents == 0) continue;
      Line line;
      if (ReadLine(children[i].pipe, &line)) {
        Count(arguments, line, &children[i], &tally);
      } else if (!Continue(arguments, &children[i], &tally)) {
        children.erase(children.begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
  }
  for (const Child& child : children) {  // one find was enough
    kill(child.pid, SIGKILL);
    waitpid(child.pid, nullptr, 0);
  }
  return tally;
}

int RunRange(const Arguments& arguments) {
  const auto begin = std::chrono::steady_clock::now();
  const Tally tally = RunAll(arguments);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  std::printf("%lld worlds, %lld events in %.1f s (%.0f events/s), %lld broken, %lld stopped\n%s\n",
              static_cast<long long>(tally.worlds), static_cast<long long>(tally.events),
              seconds.count(), static_cast<double>(tally.events) / seconds.count(),
              static_cast<long long>(tally.found), static_cast<long long>(tally.stopped),
              tally.sights.Text().c_str());
  if (tally.found > 0) return 1;
  return tally.stopped > 0 ? 3 : 0;
}

}  // namespace
}  // namespace facet::sim

int main(int argc, char** argv) {
  const auto arguments = facet::sim::Parse(argc, argv);
  if (!arguments) return facet::sim::Misuse();
  return arguments->single ? facet::sim::RunOne(*arguments) : facet::sim::RunRange(*arguments);
}
