#ifndef FACET_CLIENT_BENCH_H_
#define FACET_CLIENT_BENCH_H_

#include <iosfwd>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/connection.h"
#include "client/options.h"
#include "client/percentiles.h"
#include "client/profile.h"

namespace facet {

// What all streams saw together. Times in seconds.
struct BenchSamples {
  int completed = 0;
  int cut_off = 0;      // still running when the time was up
  int resumptions = 0;  // streams that went on at another router
  int late = 0;         // with a rate: sent 10 ms after their arrival or later
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  std::vector<double> ttft;
  std::vector<double> tpot;
  std::vector<double> itl;
  std::vector<double> end_to_end;
  std::map<std::string, int> errors;  // "RESOURCE_EXHAUSTED: queue is full" -> how often
};

struct BenchReport {
  double wall_s = 0;
  BenchSamples samples;
  std::optional<ClusterProfile> profile;  // where it was asked for
};

// Runs the load on the calling thread: at most `streams` requests at a time, as many as that
// without a rate, and with one as they arrive. One request that is not counted goes first. Fails if
// that one does; errors of later ones are counted.
absl::StatusOr<BenchReport> MeasureBench(const Connection& connection, const BenchOptions& options,
                                         std::ostream& err);

// MeasureBench and its report: a table, or one JSON object. An error if any request failed.
absl::Status RunBench(const Connection& connection, const BenchOptions& options, std::ostream& out,
                      std::ostream& err);

}  // namespace facet

#endif  // FACET_CLIENT_BENCH_H_
