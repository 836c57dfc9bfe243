#ifndef FACET_KERNELS_REFERENCE_REFERENCE_DEVICE_H_
#define FACET_KERNELS_REFERENCE_REFERENCE_DEVICE_H_

#include <memory>

#include "kernels/device.h"

namespace facet {

// The oracle of every other device: scalar, on one thread, weights read block by block from the
// bytes of the file, every operation in the order kernels/README.md gives.
std::unique_ptr<Device> MakeReferenceDevice();

}  // namespace facet

#endif  // FACET_KERNELS_REFERENCE_REFERENCE_DEVICE_H_
