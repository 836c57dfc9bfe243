#ifndef FACET_TESTS_COLLECTIVES_GROUP_HARNESS_H_
#define FACET_TESTS_COLLECTIVES_GROUP_HARNESS_H_

// Runs every rank of a group at once: as threads over the local backend, as forked processes over
// shared memory, and as both over TCP. A rank's work returns a Status; the harness hands back one
// per rank. The conformance suite's backends (tested_backends.h) are made of this.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/status.h"
#include "kernels/collectives/arena.h"
#include "kernels/collectives/communicator.h"
#include "kernels/collectives/tcp.h"

namespace facet {

using RankWork = std::function<absl::Status(Communicator& comm)>;

std::vector<absl::Status> RunThreads(int world, const RankWork& work,
                                     const ArenaOptions& options = {});

// Each rank is a child process. A child that does not return normally gives kUnknown with its
// signal or exit code.
std::vector<absl::Status> RunProcesses(int world, const RankWork& work,
                                       const ArenaOptions& options = {});

// The same over TCP, on loopback. Of `options` the slot, which becomes the buffer, and the bounds
// count.
std::vector<absl::Status> RunTcpThreads(int world, const RankWork& work,
                                        const ArenaOptions& options = {});
std::vector<absl::Status> RunTcpProcesses(int world, const RankWork& work,
                                          const ArenaOptions& options = {});

// A port of loopback for every rank, and the key of an epoch.
struct TcpPorts {
  std::vector<TcpListener> listeners;
  TcpGroup group;  // of rank 0
};
TcpPorts TakeTcpPorts(int world);

// A rank's communicator, made on the rank's thread: all ranks at once.
using MakeCommunicator = std::function<absl::StatusOr<std::unique_ptr<Communicator>>()>;
std::vector<MakeCommunicator> TakeLocalGroup(int world, const ArenaOptions& options);
std::vector<MakeCommunicator> TakeTcpGroup(int world, const ArenaOptions& options);

// Gives each rank's communicator to `body` on a thread of its own.
std::vector<absl::Status> RunRanks(
    std::vector<MakeCommunicator> ranks,
    const std::function<absl::Status(std::unique_ptr<Communicator>)>& body);

// Runs `body(rank)` in a child process per rank.
std::vector<absl::Status> RunChildren(int world, const std::function<absl::Status(int)>& body);

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
