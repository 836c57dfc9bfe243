#include <utility>

#include "kernels/collectives/staged.h"
#include "kernels/host/forwarding_device.h"
#include "kernels/reference/reference_device.h"
#include "tests/collectives/device_ranks.h"
#include "tests/collectives/tested_backends.h"

namespace facet {
namespace {

// Hands out addresses that no process has: whoever reads or writes there but the device crashes.
class RemoteDevice final : public ForwardingDevice {
 public:
  RemoteDevice() : ForwardingDevice(MakeReferenceDevice()) {}

  bool host_memory() const override { return false; }
  absl::StatusOr<Floats> AllocateFloats(int64_t size) override {
    absl::StatusOr<Floats> floats = ForwardingDevice::AllocateFloats(size);
    if (floats.ok()) floats->data = Shifted(floats->data, kShift);
    return floats;
  }
  void CopyIn(std::span<const float> host, Floats device) override {
    ForwardingDevice::CopyIn(host, {Shifted(device.data, -kShift), device.size});
  }
  void CopyOut(Floats device, std::span<float> host) override {
    ForwardingDevice::CopyOut({Shifted(device.data, -kShift), device.size}, host);
  }

 private:
  static constexpr intptr_t kShift = intptr_t{1} << 60;
  static float* Shifted(float* data, intptr_t by) {
    return reinterpret_cast<float*>(reinterpret_cast<intptr_t>(data) + by);
  }
};

std::vector<absl::Status> RunStaged(int world, const RankWork& work, const ArenaOptions& options) {
  return RunRanks(TakeLocalGroup(world, options), [&](std::unique_ptr<Communicator> host) {
    RemoteDevice device;
    const auto comm = FromHostMemory(&device, MakeStagedCommunicator(&device, std::move(host)));
    return work(*comm);
  });
}

}  // namespace

const std::vector<Backend>& TestedBackends() {
  static const auto* const kBackends = new std::vector<Backend>{
      {.name = "Local", .run = RunThreads, .stress_calls = 10'000},
      {.name = "Staged", .run = RunStaged, .stress_calls = 1'000},
      {.name = "Shm", .run = RunProcesses, .processes = true, .stress_calls = 10'000},
      {.name = "TcpThreads",
       .run = RunTcpThreads,
       .one_story = false,
       .sees_who_leaves = true,
       .stress_calls = 3'000},
      {.name = "Tcp",
       .run = RunTcpProcesses,
       .processes = true,
       .one_story = false,
       .sees_who_leaves = true,
       .stress_calls = 3'000}};
  return *kBackends;
}

}  // namespace facet
