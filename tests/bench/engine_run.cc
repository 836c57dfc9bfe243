#include "tests/bench/engine_run.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/status.h"

namespace facet {

std::unique_ptr<testing::InProcessGroup> StartRanks(const RanksOptions& options) {
  testing::GroupOptions group;
  group.world = options.world;
  group.rank.model_path = options.model;
  group.rank.threads = options.threads;
  group.rank.screened_head = options.screened_head;
  group.rank.mixed_prefill_max = 128;  // the worker's default
  absl::StatusOr<std::unique_ptr<testing::InProcessGroup>> started =
      testing::InProcessGroup::Start(group);
  FACET_CHECK(started.ok(), "{}", MessageOf(started.status()));
  return *std::move(started);
}

StepPlan RunStep(Engine* engine, Executor* executor) {
  std::optional<StepPlan> plan = engine->Plan(0);
  FACET_CHECK(plan.has_value(), "sequences are open and the engine has no plan");
  const absl::StatusOr<StepResult> result = executor->Run(*plan);
  FACET_CHECK(result.ok(), "{}", MessageOf(result.status()));
  engine->Complete(*result, 0);
  return *std::move(plan);
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[(values.size() - 1) / 2];
}

}  // namespace facet
