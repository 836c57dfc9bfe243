#ifndef FACET_KERNELS_COLLECTIVES_CALL_H_
#define FACET_KERNELS_COLLECTIVES_CALL_H_

// What the ranks say to each other about a call, so that ranks in different calls fail instead of
// mixing their data. The same for every backend.

#include <cstdint>
#include <span>
#include <string>

namespace facet {

inline constexpr int kMaxRanks = 64;

enum class Operation : uint32_t {
  kAllReduce = 1,
  kAllGather,
  kAllGatherBytes,
  kBroadcast,
  kBarrier
};

// Its layout is that of the arena and of a frame.
struct CallHeader {
  uint64_t step = 0;
  uint64_t size = 0;       // elements; bytes of the sender where sizes may differ
  uint32_t layout = 0;     // digest of how `size` is cut
  uint32_t operation = 0;  // an Operation
};
static_assert(sizeof(CallHeader) == 24);

// Such as "all-reduce of step 17".
std::string Describe(const CallHeader& header);

// Why `peer`, which is in `theirs`, and `rank`, which is in `mine`, cannot work together: a
// sentence that names both. Empty if they can.
std::string DifferenceOf(int peer, const CallHeader& theirs, int rank, const CallHeader& mine);

// For CallHeader::layout.
uint32_t LayoutDigest(std::span<const int> values);
uint32_t LayoutDigest(std::span<const int64_t> values);

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_CALL_H_
