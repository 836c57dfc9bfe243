// Every half and every bfloat16 is decoded against arithmetic on its fields. Encoding is monotonic
// between two neighbours and decided at their midpoint, so neighbours, midpoints and the floats
// around them check every float; g++'s own conversion repeats it on random bits.

#include "base/float16.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "base/prng.h"

namespace facet {
namespace {

uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// IEEE 754-2019, section 3.4, for a format of 1 + exponent_bits + mantissa_bits.
float DecodeByDefinition(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = static_cast<int>(bits) & ((1 << mantissa_bits) - 1);
  const bool negative = (bits >> (exponent_bits + mantissa_bits)) != 0;
  double magnitude;
  if (exponent == (1 << exponent_bits) - 1) {
    magnitude = mantissa == 0 ? kInfinity : std::nan("");
  } else if (exponent == 0) {
    magnitude = std::ldexp(mantissa, 1 - bias - mantissa_bits);
  } else {
    magnitude = std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  }
  return static_cast<float>(negative ? -magnitude : magnitude);
}

TEST(Float16, EveryHalfDecodesToItsValue) {
  for (uint32_t half = 0; half < 0x10000; ++half) {
    const float want = DecodeByDefinition(half, 5, 10);
    const float got = HalfToFloat(static_cast<uint16_t>(half));
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got)) << half;
    } else {
      ASSERT_EQ(Bits(got), Bits(want)) << half;
    }
  }
}

TEST(Float16, EveryBFloat16DecodesToItsValue) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float want = DecodeByDefinition(bits, 8, 7);
    const float got = BFloat16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got)) << bits;
    } else {
      ASSERT_EQ(Bits(got), Bits(want)) << bits;
    }
  }
}

TEST(Float16, EveryNumberSurvivesARoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t code = static_cast<uint16_t>(bits);
    const float half = HalfToFloat(code);
    const float bfloat16 = BFloat16ToFloat(code);
    ASSERT_TRUE(std::isnan(half) || FloatToHalf(half) == code) << code;
    ASSERT_TRUE(std::isnan(bfloat16) || FloatToBFloat16(bfloat16) == code) << code;
  }
}

// Around the midpoint of the codes `lower` and `lower + 1` (as if the format went on behind its
// largest number), for both signs.
template <typename Decode, typename Encode>
void ExpectNearestEven(uint16_t lower, float upper_value, Decode decode, Encode encode) {
  const float value = decode(lower);
  const float middle =
      static_cast<float>((static_cast<double>(value) + static_cast<double>(upper_value)) / 2);
  const uint16_t upper = static_cast<uint16_t>(lower + 1);
  const uint16_t even = lower % 2 == 0 ? lower : upper;
  for (const uint16_t sign : {uint16_t{0}, uint16_t{0x8000}}) {
    const float s = sign == 0 ? 1.f : -1.f;
    ASSERT_EQ(encode(s * middle), even | sign) << lower;
    ASSERT_EQ(encode(s * std::nextafter(middle, 0.f)), lower | sign) << lower;
    ASSERT_EQ(encode(s * std::nextafter(middle, kInfinity)), upper | sign) << lower;
    ASSERT_EQ(encode(s * std::nextafter(value, kInfinity)), lower | sign) << lower;
  }
}

TEST(Float16, HalvesRoundToNearestEven) {
  for (uint16_t lower = 0; lower < 0x7c00; ++lower) {
    const float upper = lower == 0x7bff ? 65536.f : HalfToFloat(static_cast<uint16_t>(lower + 1));
    ExpectNearestEven(lower, upper, HalfToFloat, FloatToHalf);
  }
}

TEST(Float16, BFloat16sRoundToNearestEven) {
  for (uint16_t lower = 0; lower < 0x7f7f; ++lower) {
    ExpectNearestEven(lower, BFloat16ToFloat(static_cast<uint16_t>(lower + 1)), BFloat16ToFloat,
                      FloatToBFloat16);
  }
  // Behind the largest number there is no next one to take the midpoint with.
  EXPECT_EQ(FloatToBFloat16(std::bit_cast<float>(0x7f7f7fffu)), 0x7f7f);
  EXPECT_EQ(FloatToBFloat16(std::bit_cast<float>(0x7f7f8000u)), 0x7f80);
}

TEST(Float16, InfinitiesAndNansStay) {
  EXPECT_EQ(FloatToHalf(kInfinity), 0x7c00);
  EXPECT_EQ(FloatToHalf(-kInfinity), 0xfc00);
  EXPECT_EQ(FloatToHalf(std::numeric_limits<float>::max()), 0x7c00);
  EXPECT_EQ(FloatToBFloat16(-kInfinity), 0xff80);
  for (uint32_t payload = 1; payload < 0x800000; payload += 97) {
    const float nan = std::bit_cast<float>(0x7f800000u | payload);
    ASSERT_TRUE(std::isnan(HalfToFloat(FloatToHalf(nan)))) << payload;
    ASSERT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(nan)))) << payload;
    ASSERT_TRUE(std::isnan(HalfToFloat(FloatToHalf(-nan)))) << payload;
  }
}

#if defined(__FLT16_MAX__)
TEST(Float16, RandomFloatsConvertAsTheCompilerDoes) {
  constexpr uint64_t kSeed = 1;
  for (uint64_t i = 0; i < 5'000'000; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(Mix64(kSeed, i)));
    if (std::isnan(value)) continue;
    const uint16_t want = std::bit_cast<uint16_t>(static_cast<_Float16>(value));
    ASSERT_EQ(FloatToHalf(value), want) << "seed " << kSeed << ", bits " << Bits(value);
  }
}
#endif

}  // namespace
}  // namespace facet
