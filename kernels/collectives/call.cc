#include "kernels/collectives/call.h"

#include <fmt/format.h>

#include "base/prng.h"

namespace facet {
namespace {

const char* NameOf(uint32_t operation) {
  switch (static_cast<Operation>(operation)) {
    case Operation::kAllReduce:
      return "all-reduce";
    case Operation::kAllGather:
      return "all-gather";
    case Operation::kAllGatherBytes:
      return "all-gather of bytes";
    case Operation::kBroadcast:
      return "broadcast";
    case Operation::kBarrier:
      return "barrier";
  }
  return "an unknown operation";
}

bool SizesMustAgree(uint32_t operation) {
  return operation == static_cast<uint32_t>(Operation::kAllReduce) ||
         operation == static_cast<uint32_t>(Operation::kAllGather);
}

template <typename Int>
uint32_t DigestOf(std::span<const Int> values) {
  uint64_t digest = values.size();
  for (const Int value : values) digest = Mix64(digest, static_cast<uint64_t>(value));
  return static_cast<uint32_t>(digest >> 32);
}

}  // namespace

std::string Describe(const CallHeader& header) {
  return fmt::format("{} of step {}", NameOf(header.operation), header.step);
}

std::string DifferenceOf(int peer, const CallHeader& theirs, int rank, const CallHeader& mine) {
  if (theirs.operation != mine.operation || theirs.step != mine.step) {
    return fmt::format("rank {} is in {}, rank {} in {}", peer, Describe(theirs), rank,
                       Describe(mine));
  }
  if (!SizesMustAgree(mine.operation)) return {};
  if (theirs.size != mine.size) {
    return fmt::format("rank {} is in {} with {} elements, rank {} with {}", peer, Describe(theirs),
                       theirs.size, rank, mine.size);
  }
  if (theirs.layout != mine.layout) {
    return fmt::format(
        "rank {} and rank {} are in {} with {} elements each, but divide them differently between "
        "the ranks",
        peer, rank, Describe(mine), mine.size);
  }
  return {};
}

uint32_t LayoutDigest(std::span<const int> values) { return DigestOf(values); }
uint32_t LayoutDigest(std::span<const int64_t> values) { return DigestOf(values); }

}  // namespace facet
