#ifndef FACET_TESTS_SIMULATION_SCENARIO_H_
#define FACET_TESTS_SIMULATION_SCENARIO_H_

// One world, as a seed describes it before anything moves: processes, bounds, requests, faults.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "router/core/router_core.h"
#include "shard_worker/engine/leader_core.h"
#include "tests/simulation/stage.h"
#include "tests/simulation/wire.h"

namespace facet::sim {

struct GroupPlan {
  LeaderCoreOptions leader;  // all groups have the same context
  std::string fingerprint;
  int ranks = 1;
  TimeUs step_base = 0, step_per_token = 0;
};

// What a client will ask and how it will behave.
struct RequestPlan {
  int number = 0;
  TimeUs arrival = 0;
  std::string tenant;
  int priority = 0;
  std::vector<std::vector<TokenId>> prompts;
  int n = 1;
  int max_tokens = 1;
  uint64_t seed = 0;
  std::vector<TokenId> stop_token_ids;
  // Stands for a stop string: the router's service ends a choice after these two tokens in a row.
  std::optional<std::pair<TokenId, TokenId>> stop_pair;
  int logprobs = -1;
  bool prompt_logprobs = false;
  bool penalties = false;
  TimeUs timeout = kNever;       // of the whole request
  TimeUs cancel_after = kNever;  // the client loses interest
  bool asks_again = false;       // and then asks the same anew, under the same id
  TimeUs read_delay = 0;         // of each message; 0: reads as fast as it comes
  bool kills_groups = false;     // some rank dies of it
};

enum class Fault {
  kRouterCrash,
  kLeaderCrash,
  kRankDeath,
  kHang,
  kSlowRank,
  kSessionBreak,
  kSessionPartition,
  kClientBreak,
  kDrain,
};
inline constexpr int kFaults = 9;

struct Scenario {
  uint64_t seed = 0;
  int routers = 1;
  RouterCoreOptions core;
  std::vector<GroupPlan> groups;
  std::vector<RequestPlan> requests;  // by arrival
  // A fault of the kind comes after about so long, again and again until `faults_end`; kNever: off.
  TimeUs fault_interval[kFaults] = {};
  TimeUs faults_end = 0;
  WireDelays client_wire, session_wire;
  TimeUs restart_least = 0, restart_most = 0;  // of a process that died
  TimeUs hang_notice = 0;                      // until a step that does not move ends the epoch
  TimeUs silence_max = 0;                      // until a router gives a silent leader up
  int ring_tokens = 0;                         // of a stream whose client does not read
  TimeUs reader_patience = 0;                  // before such a stream is closed
  std::optional<TokenId> poison;               // has logits that are no numbers
};

Scenario DrawScenario(uint64_t seed);

}  // namespace facet::sim

#endif  // FACET_TESTS_SIMULATION_SCENARIO_H_
