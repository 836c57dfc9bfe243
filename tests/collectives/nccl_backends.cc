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
  nccl.attach_timeout = std::chrono::seconds(60);  // a slow host is no peer that does not come
  return nccl;
}

std::vector<absl::Status> RunNcclRanks(std::vector<MakeCommunicator> hosts,
                                       const cuda::NcclOptions& options, const RankWork& work) {
  return RunRanks(std::move(hosts), [&](std::unique_ptr<Communicator> host) -> absl::Status {
    cuda::CudaDeviceOptions device_options = {.device = host->rank() % cuda_emulator::kDevices,
                                              .workspace_bytes = int64_t{1} << 20};
    FACET_ASSIGN_OR_RETURN(const auto device, cuda::MakeCudaDevice(device_options));
    auto* const collectives = static_cast<cuda::NcclCollectives*>(device->collectives());
    collectives->SetOptions(options);
    FACET_ASSIGN_OR_RETURN(auto inner, collectives->Join(std::move(host)));
    const auto comm = FromHostMemory(device.get(), std::move(inner));
    comm->SetTimeout(std::chrono::seconds(10));
    return work(*comm);
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
