// Kernels that are right run under the emulator, whatever the order of their threads.

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "tests/cuda_emulator/machine.h"
#include "tests/cuda_emulator/samples.h"

namespace facet::cuda_emulator {
namespace {

constexpr uint64_t kSeeds = 30;

TEST(Emulator, BlockSumsAreRightInEveryOrder) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    SCOPED_TRACE(seed);
    Machine::OfThisThread().SetSeed(seed);
    for (const int threads : {32, 96, 256}) {
      for (const int count : {0, 1, 31, 257}) {
        constexpr int kBlocks = 3;
        std::vector<int32_t> values(static_cast<size_t>(kBlocks) * count);
        std::iota(values.begin(), values.end(), -7);
        std::vector<int32_t> out(kBlocks, -1);
        ASSERT_EQ(
            cuda_samples::BlockSums(nullptr, values.data(), count, kBlocks, threads, out.data()),
            0);
        for (int block = 0; block < kBlocks; ++block) {
          const auto begin = values.begin() + block * count;
          EXPECT_EQ(out[block], std::accumulate(begin, begin + count, 0));
        }
      }
    }
  }
}

}  // namespace
}  // namespace facet::cuda_emulator
