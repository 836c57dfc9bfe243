#ifndef FACET_KERNELS_COLLECTIVES_DEVICE_COLLECTIVES_H_
#define FACET_KERNELS_COLLECTIVES_DEVICE_COLLECTIVES_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/collectives/communicator.h"

namespace facet {

// What a rank says of its device before its group forms, so that all can tell whether the devices
// could exchange data without the hosts.
struct DeviceSeat {
  int version = 0;  // of NCCL, as ncclGetVersion() counts: the same on all ranks
  std::string gpu;  // which no other rank may have
};

// How ranks whose Floats are in a device's memory exchange them there. Belongs to the device; one
// thread calls it, the one that calls the device.
class DeviceCollectives {
 public:
  virtual ~DeviceCollectives() = default;

  // FailedPrecondition says what is missing.
  virtual absl::StatusOr<DeviceSeat> Seat() = 0;

  // Forms the group with all its ranks, which find each other over `host`, and returns when all
  // stand. The communicator keeps `host` for what is in host memory, and for all that ranks must
  // agree in (kernels/collectives/README.md), and borrows the device. Fails on all ranks or none.
  // A group of one needs nothing but the device.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Join(
      std::unique_ptr<Communicator> host) = 0;
};

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_DEVICE_COLLECTIVES_H_
