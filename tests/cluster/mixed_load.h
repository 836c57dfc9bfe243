#ifndef FACET_TESTS_CLUSTER_MIXED_LOAD_H_
#define FACET_TESTS_CLUSTER_MIXED_LOAD_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "client/connection.h"
#include "tests/cluster/answers.h"

namespace facet::testing {

using TestClock = std::chrono::steady_clock;

// Between two messages with tokens of one choice.
struct TokenGap {
  TestClock::time_point from;
  TestClock::time_point to;
  uint64_t choice = 0;   // unique in the load
  bool resumed = false;  // its stream broke off in between and went on, at this router or another

  double seconds() const { return std::chrono::duration<double>(to - from).count(); }
};

struct LoadResults {
  int64_t requests = 0;
  int64_t choices = 0;
  int64_t tokens = 0;
  int64_t resumptions = 0;
  std::map<std::string, int64_t> by_kind;  // answered requests
  std::vector<std::string> lost;           // requests that ended without their answer, and why
  std::vector<std::string> wrong;          // answers that differ from the recorded ones, and where
  std::vector<TokenGap> gaps;
};

// Streams that ask the recorded requests in turn, over and over, and compare each answer.
class MixedLoad {
 public:
  // Starts `streams` threads. Both references must outlive the object.
  MixedLoad(const Connection& connection, const std::vector<RecordedRequest>& recorded,
            int streams);
  ~MixedLoad();

  // Starts no further request, once each has been asked; returns when the last one has ended.
  LoadResults Finish();

 private:
  void RunStream(size_t index);
  void RunOne(const RecordedRequest& recorded, size_t router, LoadResults& results);

  const Connection& connection_;
  const std::vector<RecordedRequest>& recorded_;
  std::atomic<size_t> next_{0};  // request
  std::atomic<uint64_t> choices_{0};
  std::atomic<bool> over_{false};
  std::mutex mutex_;
  LoadResults total_;  // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_CLUSTER_MIXED_LOAD_H_
