#ifndef FACET_KERNELS_COLLECTIVES_STAGED_H_
#define FACET_KERNELS_COLLECTIVES_STAGED_H_

#include <memory>

#include "kernels/collectives/communicator.h"
#include "kernels/device.h"

namespace facet {

// A communicator for a device whose Floats are not in host memory, over one that works there:
// what AllReduceSum() and AllGather() get and give are addresses of `device`, whose data goes
// through host memory. The other calls are the inner communicator's own. Borrows the device.
std::unique_ptr<Communicator> MakeStagedCommunicator(Device* device,
                                                     std::unique_ptr<Communicator> inner);

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_STAGED_H_
