#ifndef FACET_TESTS_COLLECTIVES_NCCL_BACKENDS_H_
#define FACET_TESTS_COLLECTIVES_NCCL_BACKENDS_H_

#include <functional>
#include <memory>
#include <vector>

#include "kernels/cuda/nccl_link.h"
#include "kernels/device.h"
#include "tests/collectives/tested_backends.h"

namespace facet {

// Groups of transfers by which a group of ranks forms: an all-gather, and one between all pairs.
inline constexpr int kFormingGroups = 2;

// As the suite's backends have them.
cuda::NcclOptions OptionsFor(const ArenaOptions& options);

// Runs every rank at once as a thread with an emulated CUDA device, joined by the stand-in for NCCL
// beside the communicators that `hosts` make.
using DeviceRankWork =
    std::function<absl::Status(Device& device, std::unique_ptr<Communicator> comm)>;
std::vector<absl::Status> RunNcclDevices(std::vector<MakeCommunicator> hosts,
                                         const cuda::NcclOptions& options,
                                         const DeviceRankWork& work);
// The same, with a communicator that takes host memory.
std::vector<absl::Status> RunNcclRanks(std::vector<MakeCommunicator> hosts,
                                       const cuda::NcclOptions& options, const RankWork& work);

}  // namespace facet

#endif  // FACET_TESTS_COLLECTIVES_NCCL_BACKENDS_H_
