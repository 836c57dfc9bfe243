#ifndef FACET_TESTS_RUNTIME_EMULATED_DEVICE_H_
#define FACET_TESTS_RUNTIME_EMULATED_DEVICE_H_

#include <memory>

#include "kernels/device.h"
#include "tests/runtime/in_process_group.h"

namespace facet::testing {

// A CUDA device whose kernels the emulator runs, with little memory and chunks that are cut by
// splits where the whole prompt is not. `fast`: its arithmetic, with several panels to a matrix.
std::unique_ptr<Device> MakeEmulated(int index, bool fast = false);

// Every rank has a GPU of its own.
GroupOptions OnCuda(GroupOptions options, bool fast = false);

}  // namespace facet::testing

#endif  // FACET_TESTS_RUNTIME_EMULATED_DEVICE_H_
