// Many small worlds, each from a seed. A failure prints the command that replays it.

#include "tests/simulation/world.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <set>
#include <string>

#include "tests/base/sanitized.h"

namespace facet::sim {
namespace {

constexpr uint64_t kSeeds = kSanitized ? 300 : 1000;

char running[128];  // what to say if a CHECK stops the process

void TellSeed(int) {
  if (write(STDERR_FILENO, running, sizeof(running)) < 0) _exit(1);
}

std::string Replay(uint64_t seed) {
  return fmt::format("replay: build/bin/simulate --seed {} --trace", seed);
}

Outcome RunTold(uint64_t seed) {
  fmt::format_to_n(running, sizeof(running) - 1, "{}\n{}", Replay(seed), '\0');
  std::signal(SIGABRT, TellSeed);
  Outcome outcome = RunWorld(seed, /*print_trace=*/false);
  std::signal(SIGABRT, SIG_DFL);
  return outcome;
}

TEST(Simulation, NoSeedBreaksAPromise) {
  Sights sights;
  int64_t events = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const Outcome outcome = RunTold(seed);
    EXPECT_EQ(outcome.failure, "") << Replay(seed);
    events += outcome.events;
    sights.Add(outcome.sights);
  }
  std::printf("%lld events; %s\n", static_cast<long long>(events), sights.Text().c_str());
  // The worlds have seen all that they are there for.
  EXPECT_EQ(sights.Missing(), "");
}

TEST(Simulation, TheSameSeedGivesTheSameTrace) {
  std::set<uint64_t> hashes;
  for (uint64_t seed = 1; seed <= 25; ++seed) {
    const Outcome first = RunTold(seed);
    const Outcome second = RunTold(seed);
    EXPECT_EQ(first.hash, second.hash) << Replay(seed);
    EXPECT_EQ(first.events, second.events) << Replay(seed);
    std::printf("seed %llu: trace hash %016llx\n", static_cast<unsigned long long>(seed),
                static_cast<unsigned long long>(first.hash));
    hashes.insert(first.hash);
  }
  EXPECT_EQ(hashes.size(), 25);
}

}  // namespace
}  // namespace facet::sim
