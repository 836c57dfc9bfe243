#include "kernels/cuda/nccl_collectives.h"

#include <utility>

#include "base/status.h"

namespace facet::cuda {

void NcclCollectives::Init(const NcclPlace& place, std::string uuid, DeviceMemory* memory) {
  place_ = place;
  uuid_ = std::move(uuid);
  memory_ = memory;
}

absl::StatusOr<DeviceSeat> NcclCollectives::Seat() {
  FACET_ASSIGN_OR_RETURN(Nccl* const nccl, OpenNccl());
  return DeviceSeat{nccl->version(), uuid_};
}

absl::StatusOr<std::unique_ptr<Communicator>> NcclCollectives::Join(
    std::unique_ptr<Communicator> host) {
  if (host->world() == 1) {
    return std::make_unique<NcclCommunicator>(std::move(host), place_, options_);
  }
  absl::StatusOr<Nccl*> nccl = OpenNccl();
  if (const absl::Status status = AllocateBuffer(); !status.ok()) nccl = status;
  auto communicator = std::make_unique<NcclCommunicator>(std::move(host), place_, options_);
  FACET_RETURN_IF_ERROR(communicator->Form(nccl));
  return communicator;
}

// Once, for all groups that this device will be in.
absl::Status NcclCollectives::AllocateBuffer() {
  const int64_t floats = options_.buffer_bytes / static_cast<int64_t>(sizeof(float));
  if (place_.buffer_floats == floats) return absl::OkStatus();
  FACET_RETURN_IF_ERROR(UseDevice(place_.device));
  if (place_.buffer != nullptr) memory_->Release(std::exchange(place_.buffer, nullptr));
  place_.buffer_floats = 0;
  FACET_ASSIGN_OR_RETURN(void* const buffer,
                         memory_->Allocate("collectives", options_.buffer_bytes));
  place_.buffer = static_cast<float*>(buffer);
  place_.buffer_floats = floats;
  return absl::OkStatus();
}

}  // namespace facet::cuda
