#ifndef FACET_TESTS_RUNTIME_IN_PROCESS_GROUP_H_
#define FACET_TESTS_RUNTIME_IN_PROCESS_GROUP_H_

// A whole group in one process: a rank per thread over the `local` communicator, an engine on
// rank 0. Runs requests to their end and returns what they produced.

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
};

struct Output {
  std::vector<ScoredToken> tokens;
  std::vector<ScoredToken> prompt;
  EngineFinish finish = EngineFinish::kError;
  std::string error;
  std::string logits_sha256;    // hex, where the request asked for it

  std::vector<TokenId> ids() const;
};

class InProcessGroup {
 public:
  static absl::StatusOr<std::unique_ptr<InProcessGroup>> Start(const GroupOptions& options);
  ~InProcessGroup();

  // Submits all requests at once and steps until they end; outputs are in the requests' order.
  std::vector<Output> Run(std::vector<EngineRequest> requests);
  Rank& leader() { return *ranks_[0]; }

 private:
  InProcessGroup() = default;

  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<std::thread> followers_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<Engine> engine_;
  uint64_t next_id_ = 0;
};

// A greedy request for `max_tokens` tokens whose logits are hashed.
EngineRequest GreedyRequest(std::vector<TokenId> prompt, int max_tokens);

std::string Hex(const std::string& bytes);

}  // namespace facet::testing

#endif  // FACET_TESTS_RUNTIME_IN_PROCESS_GROUP_H_
