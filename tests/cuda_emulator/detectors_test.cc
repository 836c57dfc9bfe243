// Every fault that the emulator looks for is found in a kernel that has it, in every order of the
// threads, and nothing is found in the same kernel without it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "kernels/cuda/launch_shape.h"
#include "tests/cuda_emulator/findings.h"
#include "tests/cuda_emulator/hidden_orders.h"
#include "tests/cuda_emulator/machine.h"
#include "tests/cuda_emulator/planted.h"

namespace facet::cuda_emulator {
namespace {

using cuda::samples::kPlantedWords;
using cuda::samples::PlantedKernel;
using testing::AnyOf;
using testing::ContainsRegex;
using testing::HasSubstr;

constexpr uint64_t kSeeds = 40;

class Detectors : public testing::TestWithParam<PlantedKernel> {
 protected:
  Detectors() : in_(kPlantedWords / 4), out_(kPlantedWords / 4) {
    std::iota(in(), in() + kPlantedWords, 3);
  }
  uint32_t* in() { return &in_[0].x; }
  int Run(bool right) { return RunPlanted(GetParam(), right, in(), &out_[0].x); }

 private:
  std::vector<cuda::U32x4> in_, out_;  // for their alignment
};

TEST_P(Detectors, FindTheFaultInEveryOrder) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    SCOPED_TRACE(seed);
    Machine::OfThisThread().SetSeed(seed);
    FindingCollector collector;
    EXPECT_EQ(Run(true), 0);  // nothing that it leaves behind hides the fault
    EXPECT_EQ(Run(false), kErrorLaunchFailure);
    ASSERT_EQ(collector.findings().size(), 1u);
    const Finding& finding = collector.findings()[0];
    EXPECT_THAT(finding.fault, AnyOf(GetParam().fault, GetParam().in_some_orders)) << finding.text;
    EXPECT_THAT(finding.text, ContainsRegex("planted(_atomics)?\\.cu:[0-9]+"));
  }
}

TEST_P(Detectors, FindNothingWithoutTheFault) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    SCOPED_TRACE(seed);
    Machine::OfThisThread().SetSeed(seed);
    FindingCollector collector;
    EXPECT_EQ(Run(true), 0);
    ASSERT_TRUE(collector.findings().empty()) << collector.findings()[0].text;
  }
}

std::string NameOf(const testing::TestParamInfo<PlantedKernel>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Planted, Detectors, testing::ValuesIn(cuda::samples::PlantedKernels()),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(PlantedAtomics, Detectors,
                         testing::ValuesIn(cuda::samples::PlantedAtomics()), NameOf);

// What no detector watches shows in the result, in some of the orders.
TEST(HiddenOrders, ChangeResultsAndNothingElseDoes) {
  using cuda::samples::HiddenOrder;
  using cuda::samples::kOrderedWords;
  std::vector<uint32_t> in(kOrderedWords + 1), out(kOrderedWords);
  std::iota(in.begin(), in.end(), 3);
  const std::vector<uint32_t> expected(in.begin() + 1, in.end());
  for (const HiddenOrder order :
       {HiddenOrder::kOfThreads, HiddenOrder::kOfBlocks, HiddenOrder::kOfTickets,
        HiddenOrder::kOfFloatSums, HiddenOrder::kOfClaims}) {
    SCOPED_TRACE(static_cast<int>(order));
    for (const bool right : {true, false}) {
      uint64_t wrong = 0;
      for (uint64_t seed = 0; seed < kSeeds; ++seed) {
        Machine::OfThisThread().SetSeed(seed);
        std::vector<uint32_t> between(kOrderedWords);
        ASSERT_EQ(RunInHiddenOrder(order, right, in.data(), between.data(), out.data()), 0);
        wrong += out != expected;
      }
      EXPECT_EQ(wrong > 0, !right) << wrong << " of " << kSeeds << " orders";
    }
  }
}

TEST(BadLaunch, ShapesThatNoDeviceTakesAreRefused) {
  struct Shape {
    unsigned grid, block;
    uint32_t shared_bytes;
  };
  for (const Shape& shape : {Shape{0, 32, 0}, Shape{1, 0, 0}, Shape{1, 33, 0}, Shape{1, 1056, 0},
                             Shape{1, 32, 1 << 20}}) {
    FindingCollector collector;
    EXPECT_EQ(cuda::samples::RunShape(shape.grid, shape.block, shape.shared_bytes),
              kErrorInvalidConfiguration);
    ASSERT_EQ(collector.findings().size(), 1u);
    EXPECT_EQ(collector.findings()[0].fault, Fault::kBadLaunch);
  }
  EXPECT_EQ(cuda::samples::RunShape(2, 1024, kSharedBytesMax), 0);
}

// 48 KiB of both, or more if the launch has to ask for its own part anyway.
TEST(FixedArrays, CountAgainstTheBlocksLimit) {
  using cuda::samples::kFixedBytes;
  for (const uint32_t limit : {kSharedBytesWithoutAsking, kSharedBytesMax}) {
    EXPECT_EQ(cuda::samples::RunFixed(limit - kFixedBytes), 0);
    FindingCollector collector;
    EXPECT_EQ(cuda::samples::RunFixed(limit - kFixedBytes + 16), kErrorLaunchFailure);
    ASSERT_EQ(collector.findings().size(), 1u);
    EXPECT_EQ(collector.findings()[0].fault, Fault::kOutOfRange);
    EXPECT_THAT(collector.findings()[0].text, HasSubstr("40960 bytes of fixed shared arrays"));
  }
}

TEST(FindingDeathTest, WithoutACollectorAFindingEndsTheProcess) {
  EXPECT_DEATH(cuda::samples::RunShape(1, 33, 0), "33 threads are not whole warps");
}

}  // namespace
}  // namespace facet::cuda_emulator
