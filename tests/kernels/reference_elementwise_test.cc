// The reference device's norms, gates and caps against double precision.

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/reference/reference_device.h"
#include "tests/kernels/test_data.h"

namespace facet {
namespace {

constexpr int kRows = 3;
constexpr int kWidth = 83;

std::vector<double> Norm(const std::vector<double>& x, const std::vector<float>& weight) {
  std::vector<double> out;
  for (int r = 0; r < kRows; ++r) {
    double sum = 0;
    for (int i = 0; i < kWidth; ++i) sum += x[r * kWidth + i] * x[r * kWidth + i];
    const double inverse = 1 / std::sqrt(sum / kWidth + 1e-6);
    for (int i = 0; i < kWidth; ++i) out.push_back(x[r * kWidth + i] * inverse * weight[i]);
  }
  return out;
}

void ExpectNear(const std::vector<float>& got, const std::vector<double>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], expected[i], 2e-6 * std::max(1.0, std::fabs(expected[i]))) << i;
  }
}

std::vector<double> Widen(const std::vector<float>& x) { return {x.begin(), x.end()}; }

TEST(ReferenceNorm, AgreesWithDoublePrecisionAlsoInPlace) {
  Random random(1);
  const auto device = MakeReferenceDevice();
  const std::vector<float> x = MakeFloats(kRows * kWidth, 3, random);
  const std::vector<float> weight = MakeFloats(kWidth, 1, random);
  const Floats input = Upload(*device, x);
  const Floats out = *device->AllocateFloats(input.size);
  device->RmsNorm(input, kRows, kWidth, Upload(*device, weight), 1e-6f, out);
  ExpectNear(Download(*device, out), Norm(Widen(x), weight));
  device->RmsNorm(input, kRows, kWidth, Upload(*device, weight), 1e-6f, input);
  EXPECT_EQ(Download(*device, input), Download(*device, out));
}

TEST(ReferenceResidualNorm, AddsTheUpdateAndNorms) {
  Random random(2);
  for (const bool post : {false, true}) {
    const auto device = MakeReferenceDevice();
    const std::vector<float> x = MakeFloats(kRows * kWidth, 3, random);
    const std::vector<float> update = MakeFloats(kRows * kWidth, 2, random);
    const std::vector<float> post_weight = MakeFloats(kWidth, 1, random);
    const std::vector<float> next_weight = MakeFloats(kWidth, 1, random);
    ResidualNormArgs args;
    args.residual = Upload(*device, x);
    args.update = Upload(*device, update);
    if (post) args.post_weight = Upload(*device, post_weight);
    args.next_weight = Upload(*device, next_weight);
    args.out = *device->AllocateFloats(kRows * kWidth);
    args.rows = kRows;
    args.width = kWidth;
    args.epsilon = 1e-6f;
    device->ResidualNorm(args);
    std::vector<double> sum = post ? Norm(Widen(update), post_weight) : Widen(update);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += x[i];
    ExpectNear(Download(*device, args.residual), sum);
    ExpectNear(Download(*device, args.out), Norm(sum, next_weight));
    EXPECT_EQ(Download(*device, args.update), update);
  }
}

TEST(ReferenceGate, MultipliesTheActivatedGateWithUp) {
  Random random(3);
  const auto device = MakeReferenceDevice();
  const std::vector<float> gate = MakeFloats(kWidth, 3, random);
  const std::vector<float> up = MakeFloats(kWidth, 3, random);
  for (const Activation activation : {Activation::kGeluTanh, Activation::kSilu}) {
    std::vector<double> expected;
    for (int i = 0; i < kWidth; ++i) {
      const double g = gate[i];
      const double u = 0.7978845608 * (g + 0.044715 * g * g * g);
      const double act =
          activation == Activation::kSilu ? g / (1 + std::exp(-g)) : 0.5 * g * (1 + std::tanh(u));
      expected.push_back(act * up[i]);
    }
    ExpectNear(RunGate(*device, activation, gate, up), expected);
  }
}

TEST(ReferenceSoftCap, IsAScaledTanh) {
  Random random(4);
  const auto device = MakeReferenceDevice();
  const std::vector<float> x = MakeFloats(100, 40, random);
  const Floats array = Upload(*device, x);
  device->SoftCap(array, 90, 30);
  std::vector<double> expected;
  for (int i = 0; i < 100; ++i) expected.push_back(i < 90 ? 30 * std::tanh(x[i] / 30.0) : x[i]);
  ExpectNear(Download(*device, array), expected);
}

TEST(ReferenceGatherRows, CopiesTheRowsNamed) {
  const auto device = MakeReferenceDevice();
  const std::vector<float> x = {0, 1, 10, 11, 20, 21};
  const Floats out = *device->AllocateFloats(6);
  const int32_t rows[] = {2, 0, 2};
  device->GatherRows(Upload(*device, x), rows, 2, out);
  EXPECT_EQ(Download(*device, out), (std::vector<float>{20, 21, 0, 1, 20, 21}));
}

}  // namespace
}  // namespace facet
