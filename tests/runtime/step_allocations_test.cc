// A step that decodes takes no memory but for its results: what it needs within it is kept from the
// steps before. Counts every allocation of the process.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

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

class StepAllocations : public ::testing::TestWithParam<int> {};

TEST_P(StepAllocations, ADecodeTakesMemoryForItsResultsOnly) {
  const int world = GetParam();
  SteppedGroup group({.world = world});
  for (int i = 0; i < kWarmUp; ++i) group.Step();
  const int64_t before = allocations;
  for (int i = 0; i < kSteps; ++i) group.Step();
  // On every rank the result's segments and the tokens of its one segment. A follower may be a step
  // behind at both ends.
  EXPECT_LE(allocations - before, int64_t{2} * world * (kSteps + 1));
  EXPECT_GE(allocations - before, int64_t{2} * kSteps) << "nothing is counted";
}

INSTANTIATE_TEST_SUITE_P(Worlds, StepAllocations, ::testing::Values(1, 2));

}  // namespace
}  // namespace facet::testing
