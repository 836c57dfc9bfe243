#include "kernels/canonical_math.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace facet {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The distance from the true value in units of the float's last place.
double UlpsFrom(double truth, float value) {
  const float nearest = static_cast<float>(truth);
  const double ulp = std::nextafter(std::fabs(nearest), kInfinity) - std::fabs(nearest);
  return std::fabs((static_cast<double>(value) - truth) / ulp);
}

TEST(CanonicalExp, IsAccurateToAboutOneUlpEverywhere) {
  double worst = 0;
  for (double x = -103.9; x < 88.7; x += 0.0000731) {
    const float at = static_cast<float>(x);
    worst = std::max(worst, UlpsFrom(std::exp(static_cast<double>(at)), CanonicalExp(at)));
  }
  // Half an ulp from the last addition, a quarter from each of the two roundings before it.
  EXPECT_LT(worst, 1.05);
}

TEST(CanonicalExp, HasTheRightLimits) {
  EXPECT_EQ(CanonicalExp(0.0f), 1.0f);
  EXPECT_EQ(CanonicalExp(-0.0f), 1.0f);
  EXPECT_EQ(CanonicalExp(-kInfinity), 0.0f);
  EXPECT_EQ(CanonicalExp(-104.5f), 0.0f);
  EXPECT_EQ(CanonicalExp(kInfinity), kInfinity);
  EXPECT_EQ(CanonicalExp(88.8f), kInfinity);
  EXPECT_TRUE(std::isnan(CanonicalExp(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_EQ(CanonicalExp(-103.0f), std::exp(-103.0f));  // a subnormal
}

TEST(CanonicalLog, IsWithinOneUlpEverywhere) {
  double worst = 0;
  for (uint32_t bits = 0x00800000u; bits < 0x7f800000u; bits += 773) {
    const float x = std::bit_cast<float>(bits);
    const double truth = std::log(static_cast<double>(x));
    if (truth != 0) worst = std::max(worst, UlpsFrom(truth, CanonicalLog(x)));
  }
  for (uint32_t bits = 0x3f700000u; bits < 0x3f900000u; bits += 3) {  // around 1
    const float x = std::bit_cast<float>(bits);
    const double truth = std::log(static_cast<double>(x));
    if (truth != 0) worst = std::max(worst, UlpsFrom(truth, CanonicalLog(x)));
  }
  EXPECT_LT(worst, 1.0);
  EXPECT_EQ(CanonicalLog(1.0f), 0.0f);
}

// The noise in double precision, from the definition.
double ExactGumbel(uint64_t key, uint32_t id) {
  const double u = (static_cast<double>(Mix64(key ^ id) >> 40) + 0.5) * 0x1p-24;
  return -std::log(-std::log(u));
}

TEST(GumbelNoise, FollowsItsDefinitionAndBound) {
  double largest = -10;
  double sum = 0;
  constexpr int kDraws = 4'000'000;
  for (int id = 0; id < kDraws; ++id) {
    const double truth = ExactGumbel(0x1234567890abcdefull, id);
    const float noise = GumbelNoise(0x1234567890abcdefull, id);
    ASSERT_NEAR(noise, truth, 3e-6 * std::max(1.0, std::fabs(truth))) << id;
    ASSERT_LT(noise, canonical::kGumbelBound);
    largest = std::max(largest, truth);
    sum += noise;
  }
  EXPECT_GT(largest, 13);                        // the sweep reached the part near u = 1
  EXPECT_NEAR(sum / kDraws, 0.57721566, 0.005);  // Euler's constant
}

TEST(GumbelNoise, IsFiniteForTheExtremeDraws) {
  // The arguments of the logarithms for the smallest and the largest of the 2^24 draws.
  const float smallest = -CanonicalLog(-CanonicalLog(0x1p-25f));
  EXPECT_NEAR(smallest, -std::log(25 * std::log(2.0)), 1e-6);
  const float largest = -CanonicalLog(-CanonicalLogOfParts(0, -0x1p-25f));
  EXPECT_NEAR(largest, 25 * std::log(2.0), 1e-5);
  EXPECT_LT(largest, canonical::kGumbelBound);
}

TEST(GumbelCeiling, IsAtLeastTheNoiseOfEveryDraw) {
  float loosest = 0;
  for (int32_t odd = 1; odd < canonical::kOneAsDraw; odd += 2) {
    const float noise = GumbelOfDraw(odd);
    const float ceiling = GumbelCeiling(odd);
    ASSERT_LE(noise, ceiling) << odd;
    if (noise > 2) loosest = std::max(loosest, ceiling - noise);  // where it is of use
  }
  EXPECT_LT(loosest, 0.15f);
}

TEST(Tree16, AddsInItsOwnOrder) {
  float a[16] = {};
  a[0] = 1e8f;
  a[8] = -1e8f;  // the partner of a[0] in the first round
  a[4] = 1.0f;
  EXPECT_EQ(Tree16(a), 1.0f);
  a[8] = 0;
  a[1] = -1e8f;  // meets a[0] only at the end, when the 1 is lost
  EXPECT_EQ(Tree16(a), 0.0f);
}

TEST(Activations, AgreeWithTheirFormulas) {
  for (double x = -30; x < 30; x += 0.0173) {
    const float at = static_cast<float>(x);
    const double t = at;
    const double gelu = 0.5 * t * (1 + std::tanh(std::sqrt(2 / M_PI) * (t + 0.044715 * t * t * t)));
    EXPECT_NEAR(GeluTanh(at), gelu, 3e-6 * std::max(1.0, std::fabs(t)));
    EXPECT_NEAR(Silu(at), t / (1 + std::exp(-t)), 1e-6 * std::max(1.0, std::fabs(t)));
    EXPECT_NEAR(SoftCapped(at, 12.5f), 12.5 * std::tanh(t / 12.5), 4e-6);
  }
  EXPECT_EQ(SoftCapped(1e30f, 50), 50);
  EXPECT_EQ(SoftCapped(-1e30f, 50), -50);
  EXPECT_EQ(GeluTanh(-1e10f), 0);
}

}  // namespace
}  // namespace facet
