#ifndef FACET_KERNELS_CPU_CPU_DEVICE_H_
#define FACET_KERNELS_CPU_CPU_DEVICE_H_

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace facet {

struct CpuDeviceOptions {
  enum Isa { kAuto, kAvx2, kAvx512, kAvx512Bf16 };
  int threads = 1;  // the calling thread is one of them
  Isa isa = kAuto;  // kAuto: the widest that this processor has
  // Called by each of its threads but the caller's before it computes; may be empty.
  std::function<void(int thread)> begin_thread = {};
};

// A device that computes on this machine's processor, bit for bit as the reference device does.
// AVX2 needs AVX2, FMA and F16C; AVX-512 needs F, BW, DQ, VL and VNNI on top, and its last form
// BF16. FailedPrecondition
// where the processor lacks them, InvalidArgument for fewer than one thread.
absl::StatusOr<std::unique_ptr<Device>> MakeCpuDevice(const CpuDeviceOptions& options);

}  // namespace facet

#endif  // FACET_KERNELS_CPU_CPU_DEVICE_H_
