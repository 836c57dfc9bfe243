#ifndef FACET_TESTS_MODEL_REPLAY_DEVICES_H_
#define FACET_TESTS_MODEL_REPLAY_DEVICES_H_

// What replay_test runs over: the emulated CUDA device, or this machine's GPU.

#include <cstdint>
#include <memory>
#include <optional>

#include "kernels/device.h"

namespace facet {

// For one rank. With `graphs` what repeats is replayed, and a capture that fails is an error.
std::unique_ptr<Device> MakeReplayDevice(int rank, bool graphs);

// Whether the devices of several ranks can exchange data without their hosts.
bool ExchangeOnDevices();

struct GraphCounts {
  int64_t made = 0;
  int64_t launches = 0;
};
// Of this process; nothing where nobody counts.
std::optional<GraphCounts> CountGraphs();

}  // namespace facet

#endif  // FACET_TESTS_MODEL_REPLAY_DEVICES_H_
