#ifndef FACET_KERNELS_CUDA_TRANSFERS_H_
#define FACET_KERNELS_CUDA_TRANSFERS_H_

#include <cstdint>
#include <vector>

#include "kernels/cuda/driver.h"

namespace facet::cuda {

class NcclLink;

// One of a rank's transfers: a send has only `from`, a receive only `to`, an all-gather both.
struct Transfer {
  const float* from = nullptr;
  float* to = nullptr;
  int64_t count = 0;  // of floats; a peer receives as many as it is sent
  int peer = 0;       // an all-gather has none
  bool operator==(const Transfer&) const = default;
};

// Transfers that go together, as LaunchQueue holds them.
struct Transfers {
  NcclLink* link = nullptr;
  std::vector<Transfer> list;
  bool operator==(const Transfers&) const = default;
};

// Puts them on the stream, whether that is being captured or not. Returns 0, or kTransfersFailed:
// the link's error() says why.
inline constexpr int kTransfersFailed = 1 << 20;  // no code of the driver, or of a library
int RunTransfers(Stream stream, const Transfers& transfers);

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_TRANSFERS_H_
