// Kernels that are right run under the emulator, whatever the order of their threads.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "base/float16.h"
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
            cuda::samples::BlockSums(nullptr, values.data(), count, kBlocks, threads, out.data()),
            0);
        for (int block = 0; block < kBlocks; ++block) {
          const auto begin = values.begin() + block * count;
          EXPECT_EQ(out[block], std::accumulate(begin, begin + count, 0));
        }
      }
    }
  }
}

// Runs `check` with the machine in many orders.
void InEveryOrder(const std::function<void()>& check) {
  for (uint64_t seed = 0; seed < kSeeds && !testing::Test::HasFatalFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Machine::OfThisThread().SetSeed(seed);
    check();
  }
}

TEST(Emulator, EveryThreadOfAGridRunsOnce) {
  const cuda::Dim3 grid = {3, 2, 2};
  const cuda::Dim3 block = {4, 2, 8};
  InEveryOrder([&] {
    std::vector<uint32_t> out(12 * 64);
    ASSERT_EQ(cuda::samples::Indices(nullptr, grid, block, out.data()), 0);
    std::vector<uint32_t> expected(out.size());
    std::iota(expected.begin(), expected.end(), 1);
    EXPECT_EQ(out, expected);
  });
}

TEST(Emulator, LanesGetWhatTheyAskFor) {
  std::vector<float> values(32);
  for (int i = 0; i < 32; ++i) values[i] = static_cast<float>(i % 3 == 0 ? -i : 10 * i);
  for (const int source : {0, 1, 5, 16, 31}) {
    InEveryOrder([&] {
      std::vector<double> out(5 * 32);
      ASSERT_EQ(cuda::samples::Lanes(nullptr, values.data(), source, out.data()), 0);
      for (int lane = 0; lane < 32; ++lane) {
        EXPECT_EQ(out[lane], values[source]);
        EXPECT_EQ(out[32 + lane], values[lane ^ source]);
        EXPECT_EQ(out[64 + lane], values[lane + source < 32 ? lane + source : lane]);
        EXPECT_EQ(out[96 + lane], values[source]);
        EXPECT_EQ(out[128 + lane], 0xb6db6db6u);  // all but every third, which is not positive
      }
    });
  }
}

TEST(Emulator, CopiesInTheBackgroundArriveAtTheirWait) {
  for (const int count : {0, 4, 124, 128, 132, 512, 900}) {
    constexpr int kBlocks = 3;
    std::vector<cuda::F32x4> storage(static_cast<size_t>(kBlocks) * count / 4 + 1);
    float* values = &storage[0].x;
    std::iota(values, values + kBlocks * count, 1.0f);
    InEveryOrder([&] {
      std::vector<float> out(kBlocks, -1);
      ASSERT_EQ(cuda::samples::PipelinedSums(nullptr, values, count, kBlocks, out.data()), 0);
      for (int block = 0; block < kBlocks; ++block) {
        const float* begin = values + block * count;
        EXPECT_EQ(out[block], std::accumulate(begin, begin + count, 0.0f)) << count;  // exact
      }
    });
  }
}

TEST(Emulator, HistogramsAreRightInEveryOrder) {
  std::vector<uint32_t> values(777);
  for (uint32_t i = 0; i < values.size(); ++i) values[i] = i * i;
  std::vector<uint32_t> expected(cuda::samples::kBins);
  for (const uint32_t value : values) ++expected[value % cuda::samples::kBins];
  for (const int count : {0, 1, 777}) {
    InEveryOrder([&] {
      std::vector<uint32_t> out(cuda::samples::kBins);
      ASSERT_EQ(cuda::samples::Histogram(nullptr, values.data(), count, 3, 96, out.data()), 0);
      EXPECT_EQ(std::accumulate(out.begin(), out.end(), 0), count);
      if (count == 777) {
        EXPECT_EQ(out, expected);
      }
    });
  }
}

template <typename T>
void CheckAtomics(const std::vector<T>& values) {
  using cuda::samples::kAtomicResults;
  const T zero = 0;
  uint32_t sum = 0;
  T bits = 0;
  for (const T value : values) {
    sum += static_cast<uint32_t>(value);
    bits |= value;
  }
  std::vector<T> out(2 * kAtomicResults);
  ASSERT_EQ(
      cuda::samples::Atomics(nullptr, values.data(), static_cast<int>(values.size()), out.data()),
      0);
  for (const T* got : {&out[0], &out[kAtomicResults]}) {
    EXPECT_EQ(static_cast<uint32_t>(got[0]), sum);
    EXPECT_EQ(got[1], std::max(zero, *std::max_element(values.begin(), values.end())));
    EXPECT_EQ(got[2], std::min(zero, *std::min_element(values.begin(), values.end())));
    EXPECT_EQ(got[3], bits);
    // Each got what another one left, so all is given out but what the last one left.
    EXPECT_EQ(static_cast<uint32_t>(got[4]) + static_cast<uint32_t>(got[5]), sum);
    EXPECT_THAT(values, testing::Contains(got[4]));
    EXPECT_THAT(values, testing::Contains(got[6]));
  }
}

TEST(Emulator, AtomicsLoseNothingInAnyOrder) {
  std::vector<int32_t> numbers(64);
  std::iota(numbers.begin(), numbers.end(), -70);  // none is 0
  std::vector<uint32_t> large(96);
  std::iota(large.begin(), large.end(), 0xffffff80u);
  InEveryOrder([&] {
    CheckAtomics(numbers);
    CheckAtomics(large);
  });
}

// Small integers, whose products and sums every format holds exactly.
std::vector<int> SmallIntegers(int count, int limit, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int> values(count);
  for (int& value : values) value = static_cast<int>(random() % (2 * limit + 1)) - limit;
  return values;
}

// d + a b, by the definition.  a [16, depth], b [depth, 8], d [16, 8]
std::vector<int> PlainProduct(const std::vector<int>& a, const std::vector<int>& b,
                              std::vector<int> d, int depth) {
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      for (int k = 0; k < depth; ++k) {
        d[row * 8 + column] += a[row * depth + k] * b[k * 8 + column];
      }
    }
  }
  return d;
}

std::vector<uint16_t> AsHalf(const std::vector<int>& values, cuda::samples::ElementType type) {
  std::vector<uint16_t> bits;
  for (const int value : values) {
    const auto number = static_cast<float>(value);
    bits.push_back(type == cuda::samples::ElementType::kF16
                       ? FloatToHalf(number)
                       : static_cast<uint16_t>(std::bit_cast<uint32_t>(number) >> 16));
  }
  return bits;
}

class Mma : public testing::TestWithParam<uint64_t> {
 protected:
  const std::vector<int> a_ = SmallIntegers(16 * 32, 100, GetParam());
  const std::vector<int> b_ = SmallIntegers(32 * 8, 100, GetParam() + 100);
  const std::vector<int> d_ = SmallIntegers(16 * 8, 1000, GetParam() + 200);
};

TEST_P(Mma, OfHalvesIsThePlainProduct) {
  const std::vector<int> expected = PlainProduct(a_, b_, d_, 16);
  for (const auto type : {cuda::samples::ElementType::kF16, cuda::samples::ElementType::kBf16}) {
    std::vector<float> d(d_.begin(), d_.end());
    ASSERT_EQ(cuda::samples::MmaByElements(nullptr, type, AsHalf(a_, type).data(),
                                           AsHalf(b_, type).data(), d.data()),
              0);
    EXPECT_EQ(d, std::vector<float>(expected.begin(), expected.end()));
  }
}

TEST_P(Mma, OfBytesIsThePlainProduct) {
  const std::vector<int8_t> a(a_.begin(), a_.end());
  const std::vector<int8_t> b(b_.begin(), b_.end());
  std::vector<int32_t> d(d_.begin(), d_.end());
  ASSERT_EQ(cuda::samples::MmaByElements(nullptr, cuda::samples::ElementType::kS8, a.data(),
                                         b.data(), d.data()),
            0);
  EXPECT_EQ(d, PlainProduct(a_, b_, d_, 32));
}

TEST_P(Mma, TakesWhatLoadMatrixGives) {
  const std::vector<int> expected = PlainProduct(a_, b_, d_, 16);
  const auto type = cuda::samples::ElementType::kBf16;
  std::vector<float> d(d_.begin(), d_.end());
  ASSERT_EQ(cuda::samples::MmaByLoadMatrix(nullptr, AsHalf(a_, type).data(),
                                           AsHalf(b_, type).data(), d.data()),
            0);
  EXPECT_EQ(d, std::vector<float>(expected.begin(), expected.end()));
}

INSTANTIATE_TEST_SUITE_P(Seeds, Mma, testing::Range(uint64_t{0}, uint64_t{8}));

TEST(Emulator, ArithmeticRoundsOnceAndToEven) {
  std::vector<float> out(cuda::samples::kArithmeticResults);
  const float x = 1 + 0x1p-12f;
  ASSERT_EQ(cuda::samples::Arithmetic(nullptr, x, x, -1, out.data()), 0);
  EXPECT_EQ(out[0], 0x1p-11f + 0x1p-24f);  // the product unrounded
  EXPECT_EQ(out[1], 1 + 0x1p-11f);         // a tie, to even
  EXPECT_EQ(out[2], 2 + 0x1p-11f);
  EXPECT_EQ(out[3], 1);
  EXPECT_EQ(out[5], 1);
  EXPECT_EQ(out[6], 1);
  EXPECT_EQ(out[7], 1);
  ASSERT_EQ(cuda::samples::Arithmetic(nullptr, 2.5f, 3, 0, out.data()), 0);
  EXPECT_EQ(out[3], 2.5f / 3);
  EXPECT_EQ(out[4], std::sqrt(2.5f));
  EXPECT_EQ(out[5], 2);
  // 2.5 is 0x40200000, 3 is 0x40400000: 64 x 64 + 32 x 64.
  EXPECT_EQ(out[8], 6144);
}

}  // namespace
}  // namespace facet::cuda_emulator
