#ifndef FACET_TESTS_RUNTIME_STEPPED_GROUP_H_
#define FACET_TESTS_RUNTIME_STEPPED_GROUP_H_

// A group on threads with a few sequences in it, whose plans are made by hand: for tests of what a
// step costs beside its arithmetic.

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "shard_worker/engine/step_plan.h"
#include "shard_worker/runtime/rank.h"

namespace facet::testing {

// What the sequences of a step ask for, each in a slot of its own.
struct StepKind {
  std::string name;
  std::vector<SequenceStart> starts;
};
// Each way to choose a token, and all of them in one step.
std::vector<StepKind> StepKinds();

struct SteppedGroupOptions {
  int world = 1;
  int threads = 1;  // of a rank
  StepKind kind;
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
