// Norms, gates and caps of the tested devices equal the reference device's bit for bit.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>

#include "kernels/reference/reference_device.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

using Operation = std::function<std::vector<float>(Device&)>;

void ExpectEqual(const Operation& operation, const std::string& what) {
  const std::vector<float> expected = operation(*MakeReferenceDevice());
  for (const NamedDevice& named : TestedDevices({1, 3})) {
    ASSERT_EQ(FirstDifference(operation(*named.device), expected), -1) << named.name << " " << what;
  }
}

std::vector<int> Widths() { return Shapes<int>({1, 15, 16, 17, 64, 83, 640, 2049}, {1, 17, 640}); }

TEST(DeviceNorm, EqualsTheReference) {
  Random random(1);
  for (const int width : Widths()) {
    for (const int rows : Shapes<int>({1, 3, 50}, {1, 5})) {
      const std::vector<float> x = MakeActivations(rows, width, random);
      const std::vector<float> weight = MakeFloats(width, 1, random);
      ExpectEqual(
          [&](Device& device) {
            const Floats out = *device.AllocateFloats(rows * width);
            device.RmsNorm(Upload(device, x), rows, width, Upload(device, weight), 1e-6f, out);
            return Download(device, out);
          },
          std::to_string(rows) + " x " + std::to_string(width));
    }
  }
}

TEST(DeviceResidualNorm, EqualsTheReference) {
  Random random(2);
  for (const int width : Widths()) {
    for (const bool post : {false, true}) {
      constexpr int kRows = 5;
      const std::vector<float> x = MakeActivations(kRows, width, random);
      const std::vector<float> update = MakeActivations(kRows, width, random);
      const std::vector<float> weights = MakeFloats(2 * width, 1, random);
      ExpectEqual(
          [&](Device& device) {
            ResidualNormArgs args;
            args.residual = Upload(device, x);
            args.update = Upload(device, update);
            if (post) args.post_weight = Upload(device, std::span(weights).first(width));
            args.next_weight = Upload(device, std::span(weights).last(width));
            args.out = *device.AllocateFloats(kRows * width);
            args.rows = kRows;
            args.width = width;
            args.epsilon = 1e-5f;
            device.ResidualNorm(args);
            std::vector<float> result = Download(device, args.residual);
            const std::vector<float> out = Download(device, args.out);
            result.insert(result.end(), out.begin(), out.end());
            return result;
          },
          std::to_string(width));
    }
  }
}

TEST(DeviceGate, EqualsTheReference) {
  Random random(3);
  for (const int width : Widths()) {
    for (const Activation activation : {Activation::kGeluTanh, Activation::kSilu}) {
      const std::vector<float> gate = MakeFloats(width, 4, random);
      const std::vector<float> up = MakeFloats(width, 4, random);
      ExpectEqual([&](Device& device) { return RunGate(device, activation, gate, up); },
                  std::to_string(width));
    }
  }
}

// All orders of magnitude of both signs, with subnormals and infinities.
std::vector<float> Sweep() {
  std::vector<float> x;
  const uint64_t stride = TestedDevicesAreSlow() ? 14983 * 41 : 14983;
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += stride) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (!std::isnan(value)) x.push_back(value);
  }
  for (double value = -105; value < 90; value += TestedDevicesAreSlow() ? 0.037 : 0.0011)
    x.push_back(static_cast<float>(value));
  x.push_back(INFINITY);
  return x;
}

TEST(DeviceExp, EqualsTheReferenceOverADenseSweep) {
  // Through the operations that use it: silu(x) = x / (1 + exp(-x)) and the soft cap.
  const std::vector<float> x = Sweep();
  const int width = static_cast<int>(x.size());
  const std::vector<float> ones(x.size(), 1.0f);
  ExpectEqual(
      [&](Device& device) {
        std::vector<float> result = RunGate(device, Activation::kSilu, x, ones);
        // silu(-infinity) is -infinity / infinity; which NaN that is does not matter.
        for (float& value : result) value = std::isnan(value) ? 0 : value;
        return result;
      },
      "silu");
  ExpectEqual(
      [&](Device& device) {
        const Floats array = Upload(device, x);
        device.SoftCap(array, width, 3);
        return Download(device, array);
      },
      "soft cap");
}

}  // namespace
}  // namespace facet
