#ifndef FACET_TESTS_SERVICES_FAKE_RANK_H_
#define FACET_TESTS_SERVICES_FAKE_RANK_H_

// A rank without a model, for tests of the services: it takes part in the group's collectives as a
// real one does, and rank 0 computes plans with a FakeExecutor.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>

#include "shard_worker/runtime/fake_executor.h"
#include "shard_worker/runtime/rank.h"

namespace facet::testing {

// Lets a test decide how far a group gets: every step with tokens takes one permit.
class StepGate {
 public:
  // Unlimited until the first Allow().
  void Allow(int steps);
  void Open();
  // Returns when there is a permit, and takes it.
  void Pass();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<int> permits_;
};

struct FakeRankOptions {
  int rank = 0;
  int world = 1;
  EngineOptions engine;
  uint64_t digest = 1;
  uint64_t plan_hash = 2;
  StepGate* gate = nullptr;
  // This rank breaks in the step of this number, once.
  std::optional<uint64_t> breaks_at;
  // Steps wait here, inside the step, and the rank does not move.
  StepGate* stuck = nullptr;
  // Not null: two steps may be under way; counts how often that was so.
  std::atomic<int>* overlapped = nullptr;
  // While true, its answers are wrong by a hair.
  const std::atomic<bool>* lies = nullptr;
};

class FakeRank : public Rank {
 public:
  explicit FakeRank(const FakeRankOptions& options);

  const ModelFacts& facts() const override { return facts_; }
  std::string device_name() const override { return "fake"; }
  RankMemory memory() const override { return {1000, 900, 2000}; }
  uint64_t plan_hash() const override { return options_.plan_hash; }
  EngineOptions engine_options() const override { return options_.engine; }
  void Attach(std::unique_ptr<Communicator> communicator) override;
  std::unique_ptr<Executor> MakeExecutor() override;
  absl::Status Follow() override;
  absl::Status StopFollowers() override;
  void Abort() override;
  void Detach() override;
  RankProgress progress() const override { return {moved_, in_step_}; }
  void Profile(bool on) override { profiled_ = on; }
  StepTimes TakeTimes() override;

 private:
  class GroupExecutor;
  // One step of the group, on any rank: all meet.
  absl::Status Meet(uint64_t step);
  absl::Status Compute(uint64_t step);

  const FakeRankOptions options_;
  ModelFacts facts_;
  std::optional<FakeExecutor> executor_;  // of the epoch
  std::optional<uint64_t> breaks_at_;
  std::atomic<uint64_t> moved_ = 0;
  std::atomic<bool> in_step_ = false;
  std::atomic<bool> profiled_ = false;
  std::mutex mutex_;  // Abort() comes from any thread
  std::unique_ptr<Communicator> communicator_;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_SERVICES_FAKE_RANK_H_
