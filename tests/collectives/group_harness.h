#ifndef FACET_TESTS_COLLECTIVES_GROUP_HARNESS_H_
#define FACET_TESTS_COLLECTIVES_GROUP_HARNESS_H_

// Runs every rank of a group at once: as threads over the local backend, or as forked processes
// over shared memory. A rank's work returns a Status; the harness hands back one per rank.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/status.h"
#include "kernels/collectives/arena.h"
#include "kernels/collectives/communicator.h"

namespace facet {

using RankWork = std::function<absl::Status(Communicator& comm)>;

std::vector<absl::Status> RunThreads(int world, const RankWork& work,
                                     const ArenaOptions& options = {});

// Each rank is a child process. A child that does not return normally gives kUnknown with its
// signal or exit code.
std::vector<absl::Status> RunProcesses(int world, const RankWork& work,
                                       const ArenaOptions& options = {});

enum class Backend { kThreads, kProcesses };

inline std::vector<absl::Status> RunGroup(Backend backend, int world, const RankWork& work,
                                          const ArenaOptions& options = {}) {
  return backend == Backend::kThreads ? RunThreads(world, work, options)
                                      : RunProcesses(world, work, options);
}

// A group name that nobody else uses.
std::string UniqueGroupName();

// Expects that every rank succeeded, and otherwise prints what it says.
#define EXPECT_ALL_OK(statuses)                                                 \
  do {                                                                          \
    const std::vector<absl::Status> all_ok = (statuses);                        \
    for (size_t ok_rank = 0; ok_rank < all_ok.size(); ++ok_rank) {              \
      EXPECT_TRUE(all_ok[ok_rank].ok())                                         \
          << "rank " << ok_rank << ": " << ::facet::MessageOf(all_ok[ok_rank]); \
    }                                                                           \
  } while (false)

}  // namespace facet

#endif  // FACET_TESTS_COLLECTIVES_GROUP_HARNESS_H_
