#ifndef FACET_TESTS_SIMULATION_ORACLE_H_
#define FACET_TESTS_SIMULATION_ORACLE_H_

#include <optional>
#include <vector>

#include "router/core/request.h"
#include "shard_worker/engine/step_plan.h"
#include "tests/simulation/scenario.h"

namespace facet::sim {

// What one choice must answer: computed naively from plain tokens, one after the other, with
// neither blocks nor batches nor faults.
struct Answer {
  std::vector<ScoredToken> tokens;
  EndReason reason = EndReason::kLength;  // kError: the poison token ends it
};

// REQUIRES: a scenario's group has the fingerprint.
Answer AnswerOf(const Scenario& scenario, const RequestPlan& request, int prompt_index,
                int choice_index, std::string_view fingerprint);

// Log-probabilities of the prompt's tokens from the second on.
std::vector<ScoredToken> PromptScores(const Scenario& scenario, const RequestPlan& request,
                                      int prompt_index, std::string_view fingerprint);

}  // namespace facet::sim

#endif  // FACET_TESTS_SIMULATION_ORACLE_H_
