#ifndef FACET_KERNELS_CUDA_NCCL_COLLECTIVES_H_
#define FACET_KERNELS_CUDA_NCCL_COLLECTIVES_H_

#include <memory>
#include <string>

#include "kernels/collectives/device_collectives.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/nccl_communicator.h"

namespace facet::cuda {

// How ranks on CUDA devices exchange their memory: a part of the device, whose memory, stream and
// thread it shares. NCCL is opened when somebody asks.
class NcclCollectives final : public DeviceCollectives {
 public:
  // Before all else. `place` without a buffer; `uuid` of the device.
  void Init(const NcclPlace& place, std::string uuid, DeviceMemory* memory);
  // For groups that are formed from now on.
  void SetOptions(const NcclOptions& options) { options_ = options; }

  absl::StatusOr<DeviceSeat> Seat() override;
  absl::StatusOr<std::unique_ptr<Communicator>> Join(std::unique_ptr<Communicator> host) override;

 private:
  absl::Status AllocateBuffer();

  NcclOptions options_;
  NcclPlace place_;
  std::string uuid_;
  DeviceMemory* memory_ = nullptr;
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_NCCL_COLLECTIVES_H_
