// A step that decodes takes no memory, however its tokens are chosen: what it needs is kept from
// the steps before. Only the leader's executor copies the result for its caller. Counts every
// allocation of the process.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <tuple>

#include <fmt/format.h>

#include "tests/runtime/stepped_group.h"

namespace {
std::atomic<int64_t> allocations = 0;
}  // namespace

// Not inlined: the compiler would find malloc() and delete beside each other and doubt them.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes > 0 ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace facet::testing {
namespace {

constexpr int kWarmUp = 6;
constexpr int kSteps = 12;

// Of the copy of a result: its segments, the token of each, and its alternatives.
int64_t CopyAllocations(const StepKind& kind) {
  int64_t count = 1;
  for (const SequenceStart& start : kind.starts) count += start.logprobs > 0 ? 2 : 1;
  return count;
}

class StepAllocations : public ::testing::TestWithParam<std::tuple<int, StepKind>> {};

TEST_P(StepAllocations, ADecodeTakesMemoryForTheCopyOfItsResultOnly) {
  const auto& [world, kind] = GetParam();
  SteppedGroup group({.world = world, .kind = kind});
  for (int i = 0; i < kWarmUp; ++i) group.Step();
  const int64_t before = allocations;
  for (int i = 0; i < kSteps; ++i) group.Step();
  EXPECT_EQ(allocations - before, CopyAllocations(kind) * kSteps);
}

INSTANTIATE_TEST_SUITE_P(Kinds, StepAllocations,
                         ::testing::Combine(::testing::Values(1, 2),
                                            ::testing::ValuesIn(StepKinds())),
                         [](const auto& info) {
                           return fmt::format("{}Of{}Ranks", std::get<1>(info.param).name,
                                              std::get<0>(info.param));
                         });

}  // namespace
}  // namespace facet::testing
