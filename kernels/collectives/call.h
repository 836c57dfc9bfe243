#ifndef FACET_KERNELS_COLLECTIVES_CALL_H_
#define FACET_KERNELS_COLLECTIVES_CALL_H_

// What the ranks say to each other about a call, so that ranks in different calls fail instead of
// mixing their data. The same for every backend.

#include <cstdint>
#include <span>
#include <string>

#include "kernels/sum_tree.h"

namespace facet {

inline constexpr int kMaxRanks = 64;

enum class Operation : uint32_t {
  kAllReduce = 1,
  kAllGather,
  kAllGatherBytes,
  kBroadcast,
  kBarrier,
  kExchanges  // several all-reduces and all-gathers between devices
};

// What a call is about, but for its step.
struct CallSubject {
  Operation operation = Operation::kBarrier;
  uint64_t size = 0;    // elements, or exchanges; bytes of the sender where sizes may differ
  uint32_t layout = 0;  // digest of how `size` is cut
};

// Of an all-reduce and of an all-gather, whose arguments must fit the group: where they do not,
// which is a bug of the caller, the program ends.
CallSubject AllReduceOf(const SumTree& tree, int64_t elements, int world);
CallSubject AllGatherOf(std::span<const float> mine, std::span<const int64_t> counts, int rank,
                        int world);
// The same with another layout, where `detail` of a backend must agree, too.
CallSubject WithDetail(CallSubject subject, uint64_t detail);

// Calls that are made one after the other and agreed in together.
class CallSequence {
 public:
  void Add(const CallSubject& subject);
  bool empty() const { return count_ == 0; }
  // Of one call its own, otherwise kExchanges, with a digest of all. REQUIRES: !empty()
  CallSubject subject() const;

 private:
  uint64_t count_ = 0;
  uint64_t digest_ = 0;
  CallSubject first_;
};

// Its layout is that of the arena and of a frame.
struct CallHeader {
  uint64_t step = 0;
  uint64_t size = 0;  // as CallSubject's
  uint32_t layout = 0;
  uint32_t operation = 0;  // an Operation
};
static_assert(sizeof(CallHeader) == 24);

CallHeader HeaderOf(const CallSubject& subject, uint64_t step);

// Such as "all-reduce of step 17".
std::string Describe(const CallHeader& header);

// Why `peer`, which is in `theirs`, and `rank`, which is in `mine`, cannot work together: a
// sentence that names both. Empty if they can.
std::string DifferenceOf(int peer, const CallHeader& theirs, int rank, const CallHeader& mine);

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_CALL_H_
