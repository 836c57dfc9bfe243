#include <gmock/gmock.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/device_collectives.h"
#include "kernels/cuda/cuda_module.h"
#include "tests/collectives/device_ranks.h"
#include "tests/collectives/tested_backends.h"

namespace facet {
namespace {

// What ctest takes for "skipped".
constexpr int kSkipped = 77;

absl::StatusOr<int> CountGpus() {
  FACET_ASSIGN_OR_RETURN(const cuda::CudaModule* const module, cuda::OpenCudaModule());
  FACET_ASSIGN_OR_RETURN(const int nccl, module->nccl_version());
  std::printf("NCCL %d is open\n", nccl);
  return module->device_count();
}

// A rank per GPU of this machine, as threads.
std::vector<absl::Status> RunGpus(int world, const RankWork& work, const ArenaOptions& options) {
  return RunRanks(
      TakeLocalGroup(world, options), [&](std::unique_ptr<Communicator> host) -> absl::Status {
        FACET_ASSIGN_OR_RETURN(const cuda::CudaModule* const module, cuda::OpenCudaModule());
        FACET_ASSIGN_OR_RETURN(const auto device, module->make_device({.device = host->rank()}));
        FACET_ASSIGN_OR_RETURN(auto inner, device->collectives()->Join(std::move(host)));
        const auto comm = FromHostMemory(device.get(), std::move(inner));
        comm->SetTimeout(std::chrono::minutes(2));  // a machine may stand still
        return work(*comm);
      });
}

}  // namespace

const std::vector<Backend>& TestedBackends() {
  static const auto* const kBackends =
      new std::vector<Backend>{{.name = "NcclOnGpus",
                                .run = RunGpus,
                                .ranks_max = std::min(8, CountGpus().value_or(0)),
                                .stress_calls = 1'000}};
  return *kBackends;
}

}  // namespace facet

// Without a GPU there is nothing to test, which is said aloud; with FACET_GPU set it is a failure.
int main(int argc, char** argv) {
  const auto gpus = facet::CountGpus();
  if (!gpus.ok()) {
    std::printf("no GPU to test: %s\n", facet::MessageOf(gpus.status()).c_str());
    return std::getenv("FACET_GPU") == nullptr ? facet::kSkipped : 1;
  }
  if (*gpus < 8) {
    std::printf("%d GPU(s): groups of more ranks, and the faults of groups of 8, are not tested\n",
                *gpus);
  }
  testing::InitGoogleMock(&argc, argv);
  return RUN_ALL_TESTS();
}
