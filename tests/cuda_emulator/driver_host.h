#ifndef FACET_TESTS_CUDA_EMULATOR_DRIVER_HOST_H_
#define FACET_TESTS_CUDA_EMULATOR_DRIVER_HOST_H_

// kernels/cuda/driver.h in host memory: "device" memory is the host's, filled with a pattern that
// no test expects (all bits set: NaN) and with guards on both sides that Free() checks.

#include <cstdint>

namespace facet::cuda_emulator {

inline constexpr int kDevices = 8;

// How much each device has in all, for tests of running out of it. 4 GiB at first.
void SetDeviceMemory(int64_t bytes);
// How much pinned memory the host gives in all. 1 GiB at first.
void SetPinnedMemory(int64_t bytes);
// What is allocated now, on all devices.
int64_t AllocatedBytes();
// Whether these bytes are a part of one allocation on a device.
bool InDeviceMemory(const void* from, int64_t bytes);
// Device memory that a graph takes per kernel.
inline constexpr int64_t kGraphBytesPerKernel = 1024;
// Graphs made so far, and launches of graphs.
int64_t GraphsMade();
int64_t GraphLaunches();
// Of streams made from now on: which work they put off.
void SetStreamSeed(uint64_t seed);

}  // namespace facet::cuda_emulator

#endif  // FACET_TESTS_CUDA_EMULATOR_DRIVER_HOST_H_
