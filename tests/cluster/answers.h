#ifndef FACET_TESTS_CLUSTER_ANSWERS_H_
#define FACET_TESTS_CLUSTER_ANSWERS_H_

// Requests of every kind that a stream may have to continue, and whether an answer is the recorded
// one to the bit.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/answer.h"
#include "client/connection.h"
#include "facet/v1/inference.pb.h"

namespace facet::testing {

struct RecordedRequest {
  std::string kind;  // for messages: "greedy", "n=2", ...
  v1::GenerateRequest request;
  Answer answer;
};

// Greedy and seeded, several choices and prompts, stop strings that end the answer,
// log-probabilities, penalties, bias, echo: each answered once now. REQUIRES that nothing disturbs
// the cluster. `tokens`: the length of answers without a stop string.
absl::StatusOr<std::vector<RecordedRequest>> RecordMixedRequests(const Connection& connection,
                                                                 int tokens);

// Runs the request to its end.
absl::StatusOr<Answer> Ask(const Connection& connection, const v1::GenerateRequest& request);

// Where `actual` is not `expected`: ids, text, log-probability bits, alternatives, echo, finish.
// Empty if it is. Timings and how much of the prompt was cached may differ.
std::string Difference(const Answer& expected, const Answer& actual);

}  // namespace facet::testing

#endif  // FACET_TESTS_CLUSTER_ANSWERS_H_
