#ifndef FACET_TESTS_COLLECTIVES_TESTED_BACKENDS_H_
#define FACET_TESTS_COLLECTIVES_TESTED_BACKENDS_H_

// What the conformance suite (conformance_*_test.cc) is about: one suite, linked once with
// host_backends.cc (local, staged, shm, tcp), once with nccl_backends.cc (nccl over the emulated
// CUDA device and a stand-in for NCCL) and once with gpu_backends.cc (nccl over this machine's).

#include <functional>
#include <string>
#include <vector>

#include "tests/collectives/group_harness.h"

namespace facet {

struct Backend {
  std::string name;
  // Runs every rank of a group of `world` at once. Of the options the bounds count, and whether the
  // slots are the smallest: then messages go in many pieces.
  std::function<std::vector<absl::Status>(int world, const RankWork& work,
                                          const ArenaOptions& options)>
      run;
  int ranks_max = 8;
  bool processes = false;  // a rank can be killed
  // All ranks tell of a failure in the same words. Over TCP two that see the same thing may each
  // tell it their own way.
  bool one_story = true;
  // A rank that leaves is seen before the deadline.
  bool sees_who_leaves = false;
  // Of the random calls. More take long where many processes or an emulator are at work.
  int stress_calls = 0;
  bool slow = false;  // an emulator adds

  std::vector<absl::Status> Run(int world, const RankWork& work,
                                const ArenaOptions& options = {}) const {
    return run(world, work, options);
  }
};

const std::vector<Backend>& TestedBackends();

// For a test's parameters.
inline std::vector<const Backend*> BackendsThat(const std::function<bool(const Backend&)>& can) {
  std::vector<const Backend*> chosen;
  for (const Backend& backend : TestedBackends()) {
    if (can(backend)) chosen.push_back(&backend);
  }
  return chosen;
}

}  // namespace facet

#endif  // FACET_TESTS_COLLECTIVES_TESTED_BACKENDS_H_
