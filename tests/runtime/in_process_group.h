#ifndef FACET_TESTS_RUNTIME_IN_PROCESS_GROUP_H_
#define FACET_TESTS_RUNTIME_IN_PROCESS_GROUP_H_

// A whole group in one process: a rank per thread over the `local` communicator, or that of its
// devices beside it, an engine on rank 0. Runs requests to their end and returns what they
// produced.

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/runtime/rank.h"

namespace facet::testing {

struct GroupOptions {
  RankOptions rank;  // its rank and world are set by the group
  int world = 1;
  int steps_max = 2;  // of the engine
  bool prefix_cache = true;
  SpeculationOptions speculation;
};

struct Output {
  std::vector<ScoredToken> tokens;
  std::vector<ScoredToken> prompt;
  EngineFinish finish = EngineFinish::kError;
  std::string error;
  std::string logits_sha256;  // hex, where the request asked for it
  int cached_tokens = 0;
  // Output tokens at each start, the first and those after preemptions, if no other request of the
  // run has the same seed.
  std::vector<int> starts;

  std::vector<TokenId> ids() const;
};

class InProcessGroup {
 public:
  static absl::StatusOr<std::unique_ptr<InProcessGroup>> Start(const GroupOptions& options);
  ~InProcessGroup();

  // Submits all requests at once and steps until they end; outputs are in the requests' order. The
  // i-th is cancelled once it has cancel_at.at(i) tokens.
  std::vector<Output> Run(std::vector<EngineRequest> requests,
                          const std::map<size_t, int>& cancel_at = {});
  // Submits all requests and completes so many steps.
  void RunSteps(std::vector<EngineRequest> requests, int steps);
  Rank& leader() { return *ranks_[0]; }
  Executor& executor() { return *executor_; }  // for engines other than the group's
  EngineStats stats() const { return engine_->stats(); }
  // Steps that began before the one before them was read.
  int overlapped() const { return overlapped_; }
  // Steps that have begun and are not complete.
  int under_way() const { return static_cast<int>(begun_); }
  // As if the epoch broke off, whatever is under way, and another began, without a sequence.
  void BreakOff();

 private:
  InProcessGroup() = default;
  absl::Status Attach(std::vector<std::unique_ptr<Communicator>> communicators);
  void StartFollowers();
  void BeginEpoch();
  // Returns their seeds. The ids go on from the last call's.
  std::vector<uint64_t> Submit(std::vector<EngineRequest> requests);
  // Plans as far as the engine goes, then begins what may begin, and completes the oldest plan.
  void Step(const std::vector<uint64_t>& seeds, std::vector<Output>* outputs);

  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<std::thread> followers_;
  std::atomic<bool> breaking_off_ = false;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<Engine> engine_;
  GroupOptions options_;
  std::deque<StepPlan> plans_;  // outstanding
  size_t begun_ = 0;            // of them
  int overlapped_ = 0;
  uint64_t next_id_ = 0;
};

// A greedy request for `max_tokens` tokens whose logits are hashed.
EngineRequest GreedyRequest(std::vector<TokenId> prompt, int max_tokens);

std::string Hex(const std::string& bytes);

}  // namespace facet::testing

#endif  // FACET_TESTS_RUNTIME_IN_PROCESS_GROUP_H_
