#ifndef FACET_TESTS_COLLECTIVES_DEVICE_RANKS_H_
#define FACET_TESTS_COLLECTIVES_DEVICE_RANKS_H_

#include <memory>

#include "kernels/collectives/communicator.h"
#include "kernels/device.h"

namespace facet {

// Gives a communicator of a device's addresses to work that has host memory: brings arguments to
// the device and results back. Where an all-gather has this rank's part in its place already, it
// has it there on the device, too. Borrows the device.
std::unique_ptr<Communicator> FromHostMemory(Device* device, std::unique_ptr<Communicator> inner);

}  // namespace facet

#endif  // FACET_TESTS_COLLECTIVES_DEVICE_RANKS_H_
