#include "tests/collectives/nccl_backends.h"

#include <atomic>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/nccl_collectives.h"
#include "tests/collectives/device_ranks.h"
#include "tests/cuda_emulator/driver_host.h"

namespace facet {
namespace {

std::vector<absl::Status> RunOverLocal(int world, const RankWork& work,
                                       const ArenaOptions& options) {
  return RunNcclRanks(TakeLocalGroup(world, options), OptionsFor(options), work);
}

std::vector<absl::Status> RunOverTcp(int world, const RankWork& work, const ArenaOptions& options) {
  return RunNcclRanks(TakeTcpGroup(world, options), OptionsFor(options), work);
}

}  // namespace

// So small that the suite's sizes lie on both sides of every bound.
cuda::NcclOptions OptionsFor(const ArenaOptions& options) {
  cuda::NcclOptions nccl;
  nccl.slice_bytes_min = 16 << 10;
  nccl.buffer_bytes = options.slot_bytes > kMinSlotBytes ? 4 << 20 : 32 << 10;
  nccl.spin = std::chrono::milliseconds(1);       // ranks share processors here
  nccl.attach_timeout = std::chrono::minutes(10);  // a slow host is no peer that does not come
  return nccl;
}

std::vector<absl::Status> RunNcclDevices(std::vector<MakeCommunicator> hosts,
                                         const cuda::NcclOptions& options,
                                         const DeviceRankWork& work) {
  return RunRanks(std::move(hosts), [&](std::unique_ptr<Communicator> host) -> absl::Status {
    cuda::CudaDeviceOptions device_options = {.device = host->rank() % cuda_emulator::kDevices,
                                              .workspace_bytes = int64_t{1} << 20,
                                              .graph_bytes = int64_t{1} << 20};
    FACET_ASSIGN_OR_RETURN(const auto device, cuda::MakeCudaDevice(device_options));
    auto* const collectives = static_cast<cuda::NcclCollectives*>(device->collectives());
    collectives->SetOptions(options);
    FACET_ASSIGN_OR_RETURN(auto comm, collectives->Join(std::move(host)));
    comm->SetTimeout(std::chrono::minutes(10));
    return work(*device, std::move(comm));
  });
}

std::vector<absl::Status> RunNcclRanks(std::vector<MakeCommunicator> hosts,
                                       const cuda::NcclOptions& options, const RankWork& work) {
  return RunNcclDevices(std::move(hosts), options,
                        [&work](Device& device, std::unique_ptr<Communicator> comm) {
                          return work(*FromHostMemory(&device, std::move(comm)));
                        });
}

const std::vector<Backend>& TestedBackends() {
  static const auto* const kBackends = new std::vector<Backend>{
      {.name = "Nccl", .run = RunOverLocal, .stress_calls = 300, .slow = true},
      {.name = "NcclBesideTcp",
       .run = RunOverTcp,
       .one_story = false,
       .sees_who_leaves = true,
       .stress_calls = 200,
       .slow = true}};
  return *kBackends;
}

}  // namespace facet
