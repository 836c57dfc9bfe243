#ifndef FACET_SHARD_WORKER_RUNTIME_DEVICE_CHOICE_H_
#define FACET_SHARD_WORKER_RUNTIME_DEVICE_CHOICE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace facet {

// Which device a rank computes on, and how large its steps can be.
struct DeviceChoice {
  // "auto": a GPU if the CUDA module is there and finds one, else the CPU. "cuda": as auto, but
  // without one it is an error. "cuda:N": GPU N. "cpu": the widest instructions the processor has.
  // "avx512", "avx2", "reference": these.
  std::string name = "auto";
  int rank = 0;     // ranks of one machine take its GPUs in turn, unless "cuda:N" names one
  int threads = 1;  // of a CPU device
  std::function<void(int thread)> begin_thread = {};  // of a CPU device; see CpuDeviceOptions
  // --arithmetic=fast, which only a GPU has: products in other orders, by batch.
  bool fast = false;
  int rows = 512;
  int sequences = 64;
  int64_t context = 16384;  // tokens of one sequence
  // The CUDA module; empty: the one beside this executable.
  std::string cuda_module = {};
};

struct ChosenDevice {
  std::unique_ptr<Device> device;
  std::string gpu_bus_id;  // PCI address of the GPU that it is on; empty: none
  std::string why;         // for the log: "computing on cpu-avx512: no GPU, as there is no ...so"
};

// InvalidArgument where the name is none of the above, or a device has no fast arithmetic that was
// asked for; else what the device's maker says.
absl::StatusOr<ChosenDevice> ChooseDevice(const DeviceChoice& choice);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_DEVICE_CHOICE_H_
