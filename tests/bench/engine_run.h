#ifndef FACET_TESTS_BENCH_ENGINE_RUN_H_
#define FACET_TESTS_BENCH_ENGINE_RUN_H_

// What the benchmarks of an engine in one process share: their ranks, their steps, their flags.
// For programs: what is wrong ends them.

#include <charconv>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/runtime/executor.h"
#include "tests/runtime/in_process_group.h"

namespace facet {

struct RanksOptions {
  std::string model;
  int world = 2;
  int threads = 1;  // of each rank
  bool screened_head = true;
};

// A group whose ranks are threads of this process, as workers would set them up.
std::unique_ptr<testing::InProcessGroup> StartRanks(const RanksOptions& options);

// Plans a step, runs it and completes it. Its deltas wait in the engine.
// REQUIRES: the engine has work.
StepPlan RunStep(Engine* engine, Executor* executor);

// False if `argument` does not begin with `name`, which ends in "="; a number from 0 follows it.
template <typename T>
bool ParseNumber(std::string_view argument, std::string_view name, T* value) {
  if (!argument.starts_with(name)) return false;
  const std::string_view text = argument.substr(name.size());
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  FACET_CHECK(error == std::errc() && end == text.data() + text.size() && *value >= 0, "{}",
              argument);
  return true;
}

// The lower one of an even number; 0 of none.
double Median(std::vector<double> values);

}  // namespace facet

#endif  // FACET_TESTS_BENCH_ENGINE_RUN_H_
