#ifndef FACET_TESTS_CLUSTER_TRAFFIC_H_
#define FACET_TESTS_CLUSTER_TRAFFIC_H_

// Clients that do not try again, one thread for each running request, and what they see.

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "client/answer.h"
#include "client/connection.h"

namespace facet::testing {

// One request as its client saw it.
struct Exchange {
  uint64_t number = 0;
  absl::Status status;  // of the call, or of the first choice that did not end by itself
  std::optional<std::chrono::milliseconds> retry_delay;  // a refusal named it
  std::vector<int32_t> tokens;                           // of the first choice
  int cached_tokens = 0;
  ClientClock::time_point sent;
  ClientClock::time_point ended;
  double ttft_s = 0;  // where a token came
  double tpot_s = 0;  // where more than one came: their mean distance

  double seconds() const { return std::chrono::duration<double>(ended - sent).count(); }
};

using MakeRequest = std::function<v1::GenerateRequest(uint64_t number)>;

Exchange Serve(const Connection& connection, const v1::GenerateRequest& request,
               uint64_t number = 0);

// One request after the other in each of `streams` streams, until the time is over; then waits for
// the last ones. `pause`: between two of a stream; who is refused waits as long as it is told, too.
std::vector<Exchange> RunClosedLoop(const Connection& connection, int streams,
                                    std::chrono::duration<double> duration, const MakeRequest& make,
                                    std::chrono::milliseconds pause = {});

// A new request every 1 / `per_second`, whether or not the others have ended; then waits for all.
std::vector<Exchange> RunOpenLoop(const Connection& connection, double per_second,
                                  std::chrono::duration<double> duration, const MakeRequest& make);

// All of them at once.
std::vector<Exchange> RunAtOnce(const Connection& connection,
                                const std::vector<v1::GenerateRequest>& requests);

// Greedy, exactly `output_tokens` long. The prompt is drawn: `shared` tokens from `shared_seed` and
// then `own` tokens from `seed`.
v1::GenerateRequest DrawnRequest(int shared, uint64_t shared_seed, int own, uint64_t seed,
                                 int output_tokens);

}  // namespace facet::testing

#endif  // FACET_TESTS_CLUSTER_TRAFFIC_H_
