#include "kernels/collectives/call.h"

#include <fmt/format.h>

#include "base/check.h"
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
    case Operation::kExchanges:
      return "exchanges";
  }
  return "an unknown operation";
}

bool SizesMustAgree(uint32_t operation) {
  return operation == static_cast<uint32_t>(Operation::kAllReduce) ||
         operation == static_cast<uint32_t>(Operation::kAllGather) ||
         operation == static_cast<uint32_t>(Operation::kExchanges);
}

template <typename Int>
uint32_t LayoutOf(std::span<const Int> values) {
  uint64_t digest = values.size();
  for (const Int value : values) digest = Mix64(digest, static_cast<uint64_t>(value));
  return static_cast<uint32_t>(digest >> 32);
}

}  // namespace

CallSubject AllReduceOf(const SumTree& tree, int64_t elements, int world) {
  FACET_CHECK(tree.world() == world, "a tree for {} ranks, a group of {}", tree.world(), world);
  return {Operation::kAllReduce, static_cast<uint64_t>(elements),
          LayoutOf(std::span(tree.rank_begin()))};
}

CallSubject AllGatherOf(std::span<const float> mine, std::span<const int64_t> counts, int rank,
                        int world) {
  FACET_CHECK(static_cast<int>(counts.size()) == world &&
                  counts[static_cast<size_t>(rank)] == static_cast<int64_t>(mine.size()),
              "counts do not match rank {} of {}", rank, world);
  uint64_t total = 0;
  for (const int64_t count : counts) total += static_cast<uint64_t>(count);
  return {Operation::kAllGather, total, LayoutOf(counts)};
}

CallSubject WithDetail(CallSubject subject, uint64_t detail) {
  subject.layout = static_cast<uint32_t>(Mix64(subject.layout, detail) >> 32);
  return subject;
}

void CallSequence::Add(const CallSubject& subject) {
  if (count_++ == 0) first_ = subject;
  digest_ = Mix64(digest_,
                  Mix64((uint64_t{subject.layout} << 32) | static_cast<uint32_t>(subject.operation),
                        subject.size));
}

CallSubject CallSequence::subject() const {
  FACET_CHECK(count_ > 0, "no call");
  if (count_ == 1) return first_;
  return {Operation::kExchanges, count_, static_cast<uint32_t>(digest_ >> 32)};
}

CallHeader HeaderOf(const CallSubject& subject, uint64_t step) {
  return {step, subject.size, subject.layout, static_cast<uint32_t>(subject.operation)};
}

std::string Describe(const CallHeader& header) {
  return fmt::format("{} of step {}", NameOf(header.operation), header.step);
}

std::string DifferenceOf(int peer, const CallHeader& theirs, int rank, const CallHeader& mine) {
  if (theirs.operation != mine.operation || theirs.step != mine.step) {
    return fmt::format("rank {} is in {}, rank {} in {}", peer, Describe(theirs), rank,
                       Describe(mine));
  }
  if (!SizesMustAgree(mine.operation)) return {};
  const bool several = mine.operation == static_cast<uint32_t>(Operation::kExchanges);
  if (several && (theirs.size != mine.size || theirs.layout != mine.layout)) {
    return fmt::format("rank {} makes {} exchanges at once in step {}, rank {} makes {}{}", peer,
                       theirs.size, mine.step, rank, mine.size,
                       theirs.size == mine.size ? ", but not the same" : "");
  }
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

}  // namespace facet
