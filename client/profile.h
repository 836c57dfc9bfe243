#ifndef FACET_CLIENT_PROFILE_H_
#define FACET_CLIENT_PROFILE_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/connection.h"
#include "client/json.h"
#include "client/options.h"
#include "facet/v1/inference.pb.h"

namespace facet {

// Sums over the profiled steps of all groups, on their leaders.
struct ClusterProfile {
  v1::StepProfile totals;
  int ranks = 1;  // per group, the most of any
};

// Switches profiling on, or off with 0 seconds, at the first router that can be reached.
absl::Status SetProfiling(const Connection& connection, std::chrono::seconds duration);
absl::StatusOr<ClusterProfile> ReadProfile(const Connection& connection);
// What came after `before`. FailedPrecondition if a group has formed anew in between, or nothing
// came.
absl::StatusOr<ClusterProfile> Since(const ClusterProfile& before, const ClusterProfile& after);

// A line per operation: calls and milliseconds per step, its share of the step, GB/s and GOP/s of
// one rank, and with limits, which of them binds it and the share of that limit which all ranks
// reach together if they are like the leader.
std::string ToTable(const ClusterProfile& profile, const std::optional<MachineLimits>& limits);
// The same as one JSON value.
void Write(const ClusterProfile& profile, const std::optional<MachineLimits>& limits,
           JsonWriter& json);

}  // namespace facet

#endif  // FACET_CLIENT_PROFILE_H_
