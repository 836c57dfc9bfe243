#ifndef FACET_TESTS_RUNTIME_STEPPED_GROUP_H_
#define FACET_TESTS_RUNTIME_STEPPED_GROUP_H_

// A group on threads with one greedy sequence in it, whose plans are made by hand: for tests of
// what a step costs beside its arithmetic.

#include <memory>
#include <thread>
#include <vector>

#include "shard_worker/engine/step_plan.h"
#include "shard_worker/runtime/rank.h"

namespace facet::testing {

struct SteppedGroupOptions {
  int world = 1;
  int threads = 1;  // of a rank
};

class SteppedGroup {
 public:
  explicit SteppedGroup(const SteppedGroupOptions& options);
  ~SteppedGroup();

  // The prompt at first, then a token.
  void Step();

 private:
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<std::thread> followers_;
  std::unique_ptr<Executor> executor_;
  StepPlan plan_;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_RUNTIME_STEPPED_GROUP_H_
