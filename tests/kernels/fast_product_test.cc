// --arithmetic=fast: products whose order of additions is their own, with weights and activations
// rounded where there are many rows. They are held to the reference device within the tolerances
// that kernels/cuda/README.md derives.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/host/matrix_source.h"
#include "kernels/reference/reference_device.h"
#include "tests/kernels/fast_case.h"
#include "tests/kernels/test_data.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

std::string TypeName(const testing::TestParamInfo<TensorType>& info) {
  return std::string(FormatOf(info.param).name);
}

// Some widths in whole blocks of the type.
std::vector<int64_t> Widths(TensorType type) {
  const int64_t block = FormatOf(type).elements;
  if (block == 1) return {1, 7, 64, 300};  // 64: aligned, but its five leaves are not
  if (block == 32) return {32, 96, 512};
  return {256, 768};
}

float LargestOf(std::span<const float> values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::fabs(value));
  return largest;
}

// What bounds the terms of a product of one row of the matrix with one of activations.
struct Magnitudes {
  double terms = 0;  // at least the sum of the magnitudes of all terms that either order adds
  int steps = 0;     // at least the roundings of either order
};

// A quantised term is (d n) x' or -m x', x' = xs q no larger than the block's largest |x|. |d n| +
// |m| <= 127 max |w|: a block's minimum m is at most 31 levels of d from its nearest weight, and
// two weights of the block differ by d or more (no random block is constant).
Magnitudes MagnitudesOf(TensorType type, std::span<const float> w, std::span<const float> x) {
  constexpr int kTrees = 32;  // the trees over leaves, lanes and warps
  Magnitudes result;
  if (!HasIntegerProduct(type)) {
    for (size_t k = 0; k < w.size(); ++k) result.terms += std::fabs(double{w[k]} * x[k]);
    result.steps = static_cast<int>(w.size()) + kTrees;
    return result;
  }
  const bool minimum = type == TensorType::kQ4_1 || type == TensorType::kQ5_1 ||
                       type == TensorType::kQ4_K || type == TensorType::kQ5_K;
  for (size_t k = 0; k < w.size(); k += 32) {
    const double largest = double{LargestOf(w.subspan(k, 32))} * LargestOf(x.subspan(k, 32));
    result.terms += 32 * (minimum ? 127 : 1) * largest;
  }
  result.steps = 2 * static_cast<int>(w.size() / 32) + kTrees;
  return result;
}

// Two sums of the same terms, each rounded `steps` times.
double SumTolerance(const Magnitudes& magnitudes) {
  return 2.02 * magnitudes.steps * 0x1p-24 * magnitudes.terms;
}

// A product of rounded numbers, against the reference's: both factors are off by 2^-8 of themselves
// at most, what the reference quantises by half a step of its block's largest / 127.
double RoundingTolerance(TensorType type, std::span<const float> w, std::span<const float> x) {
  double tolerance = SumTolerance(MagnitudesOf(type, w, x));
  for (size_t k = 0; k < w.size(); ++k) {
    const double quantum =
        HasIntegerProduct(type) ? LargestOf(x.subspan(k / 32 * 32, 32)) / 254.0 : 0;
    tolerance += std::fabs(w[k]) * (std::fabs(x[k]) * (0x1p-7 + 0x1p-16) + 1.001 * quantum);
  }
  return tolerance;
}

class CudaFast : public testing::TestWithParam<TensorType> {
 protected:
  // Roots of `got` and the reference's, [roots, x_rows, rows].
  void ExpectClose(const Case& of, int x_rows, std::span<const float> got,
                   std::span<const float> expected) {
    ASSERT_EQ(got.size(), expected.size());
    const int64_t width = of.matrix.rows;
    for (size_t i = 0; i < got.size(); ++i) {
      const auto row = static_cast<size_t>(static_cast<int64_t>(i) % width);
      const int64_t x_row = static_cast<int64_t>(i) / width % x_rows;
      const double tolerance =
          SumTolerance(MagnitudesOf(GetParam(), of.weights[row], of.activations(x_row)));
      ASSERT_NEAR(got[i], expected[i], tolerance)
          << width << " x " << of.matrix.columns << ", row " << row << ", " << x_row << " of "
          << x_rows << " rows of activations, element " << i;
    }
  }

  void ExpectCloseToTheReference(const Case& of, const LeafCut& cut, std::vector<int> batches) {
    const auto expected_matrix = *reference_->LoadMatrix(of.matrix.source(), &cut);
    const auto matrix = *fast_->LoadMatrix(of.matrix.source(), &cut);
    ASSERT_EQ(matrix->root_count(), expected_matrix->root_count());
    for (const int rows : batches) {
      const auto expected =
          RunRoots(*reference_, *expected_matrix, Upload(*reference_, of.x), rows);
      const auto got = RunRoots(*fast_, *matrix, Upload(*fast_, of.x), rows);
      ASSERT_NO_FATAL_FAILURE(ExpectClose(of, rows, got, expected));
    }
  }

  // Every root of `got` against the reference's, and where there is one against exact sums of
  // rounded numbers, which leaves what a float's sums add to them.
  void ExpectRounded(const Case& of, const LeafCut& cut, int x_rows) {
    const auto expected_matrix = *reference_->LoadMatrix(of.matrix.source(), &cut);
    const auto matrix = *fast_->LoadMatrix(of.matrix.source(), &cut);
    const auto expected =
        RunRoots(*reference_, *expected_matrix, Upload(*reference_, of.x), x_rows);
    const auto got = RunRoots(*fast_, *matrix, Upload(*fast_, of.x), x_rows);
    const int64_t width = of.matrix.rows;
    for (size_t i = 0; i < got.size(); ++i) {
      const auto& w = of.weights[static_cast<size_t>(static_cast<int64_t>(i) % width)];
      const auto x = of.activations(static_cast<int64_t>(i) / width % x_rows);
      ASSERT_NEAR(got[i], expected[i], RoundingTolerance(GetParam(), w, x))
          << width << " x " << of.matrix.columns << ", element " << i;
      if (matrix->root_count() == 1) {
        ASSERT_NO_FATAL_FAILURE(ExpectExact(got[i], w, x));
      }
    }
  }

  static void ExpectExact(float got, std::span<const float> w, std::span<const float> x) {
    double exact = 0, terms = 0;
    for (size_t k = 0; k < w.size(); ++k) {
      const double term = double{Rounded(w[k])} * Rounded(x[k]);
      exact += term;
      terms += std::fabs(term);
    }
    ASSERT_NEAR(got, exact, static_cast<double>(w.size()) * TestedDevicesMmaError() * terms);
  }

  std::unique_ptr<Device> reference_ = MakeReferenceDevice();
  std::unique_ptr<Device> fast_ = MakeFastDevice();
};

INSTANTIATE_TEST_SUITE_P(Types, CudaFast, testing::ValuesIn(AllTensorTypes()), TypeName);

TEST_P(CudaFast, FewRowsAreCloseToTheReferenceForEveryShape) {
  Random random(static_cast<uint64_t>(GetParam()) + 41);
  for (const int64_t rows : {1, 16, 33}) {
    for (const int64_t columns : Widths(GetParam())) {
      const Case of(GetParam(), rows, columns, 8, random);
      const LeafCut one{1, 0, CutColumns(columns, 1, LeafUnit(GetParam()))};
      const LeafCut five{8, 1, CutColumns(columns, 5, LeafUnit(GetParam()))};  // of three roots
      ASSERT_NO_FATAL_FAILURE(ExpectCloseToTheReference(of, one, {1, 2, 3, 5, 8}));
      ASSERT_NO_FATAL_FAILURE(ExpectCloseToTheReference(of, five, {1, 7}));
    }
  }
}

// So many rows of the matrix that a warp computes two alone.
TEST_P(CudaFast, ManyRowsOfTheMatrixAreCloseToTheReference) {
  Random random(static_cast<uint64_t>(GetParam()) + 42);
  const int64_t columns = Widths(GetParam()).front();
  const Case of(GetParam(), 4099, columns, 2, random);
  const LeafCut one{1, 0, CutColumns(columns, 1, LeafUnit(GetParam()))};
  ExpectCloseToTheReference(of, one, {1, 2});
}

TEST_P(CudaFast, ARowDoesNotDependOnAFewBesideIt) {
  Random random(static_cast<uint64_t>(GetParam()) + 43);
  const int64_t columns = Widths(GetParam()).back();
  const Case of(GetParam(), 40, columns, 8, random);
  const auto matrix = *fast_->LoadMatrix(of.matrix.source(), nullptr);
  const auto all = RunRoots(*fast_, *matrix, Upload(*fast_, of.x), 8);
  for (const int row : {0, 3, 7}) {
    const auto alone = RunRoots(*fast_, *matrix, Upload(*fast_, of.activations(row)), 1);
    EXPECT_EQ(FirstDifference(std::span(all).subspan(row * 40, 40), alone), -1) << "row " << row;
  }
}

// One launch where gate and up have one type, three where they have not.
TEST_P(CudaFast, GatesAreCloseToTheReference) {
  Random random(static_cast<uint64_t>(GetParam()) + 44);
  const int64_t columns = Widths(GetParam()).back();
  const TensorType other =
      columns % 32 == 0 && LeafUnit(GetParam()) > 1 ? TensorType::kQ8_0 : TensorType::kF32;
  for (const TensorType type : {GetParam(), other}) {
    const Case gate(type, 40, columns, 70, random);
    const TestMatrix up = MakeMatrix(GetParam(), 40, columns, 0.1f, random);
    const auto run = [&](Device& device, int rows) {
      const auto loaded_gate = *device.LoadMatrix(gate.matrix.source(), nullptr);
      const auto loaded_up = *device.LoadMatrix(up.source(), nullptr);
      const Floats out = *device.AllocateFloats(rows * 40);
      device.GatedProduct(Activation::kSilu, *loaded_gate, *loaded_up, Upload(device, gate.x), rows,
                          out);
      return Download(device, out);
    };
    for (const int rows : {1, 5, 8, 70}) {
      const auto expected = run(*reference_, rows);
      const auto got = run(*fast_, rows);
      for (size_t i = 0; i < got.size(); ++i) {
        // |silu'| <= 1.1 and |silu(x)| <= |x|, so the errors of both factors come through at the
        // other's size; the gate's own arithmetic is the reference's.
        const auto x = gate.activations(static_cast<int64_t>(i) / 40);
        const Magnitudes of_gate = MagnitudesOf(type, gate.weights[i % 40], x);
        const auto up_row = up.DequantizedRow(static_cast<int64_t>(i) % 40);
        const Magnitudes of_up = MagnitudesOf(GetParam(), up_row, x);
        const auto error = [&](TensorType t, std::span<const float> w, const Magnitudes& of) {
          return rows > 64 ? RoundingTolerance(t, w, x) : SumTolerance(of);
        };
        const double gate_error = error(type, gate.weights[i % 40], of_gate);
        const double up_error = error(GetParam(), up_row, of_up);
        const double tolerance =
            1.2 * (gate_error * (of_up.terms + up_error) + up_error * of_gate.terms);
        ASSERT_NEAR(got[i], expected[i], tolerance) << rows << " rows, element " << i;
      }
    }
  }
}

// Between a few and many rows, products are the canonical ones over whole roots: what they add is
// the reference's but for leaves, and a matrix without leaves has its bits.
TEST_P(CudaFast, SomeRowsHaveTheReferencesBitsWhereThereAreNoLeaves) {
  Random random(static_cast<uint64_t>(GetParam()) + 45);
  const int64_t columns = Widths(GetParam()).back();
  const Case of(GetParam(), 33, columns, 16, random);
  const auto expected_matrix = *reference_->LoadMatrix(of.matrix.source(), nullptr);
  const auto matrix = *fast_->LoadMatrix(of.matrix.source(), nullptr);
  const auto expected = RunRoots(*reference_, *expected_matrix, Upload(*reference_, of.x), 16);
  const auto got = RunRoots(*fast_, *matrix, Upload(*fast_, of.x), 16);
  EXPECT_EQ(FirstDifference(got, expected), -1);
  const LeafCut five{8, 1, CutColumns(columns, 5, LeafUnit(GetParam()))};
  ExpectCloseToTheReference(of, five, {9, 16});
}

TEST_P(CudaFast, ANotANumberReachesTheResult) {
  Random random(static_cast<uint64_t>(GetParam()) + 46);
  const int64_t columns = Widths(GetParam()).back();
  for (const int rows : {2, 66}) {
    Case of(GetParam(), 5, columns, rows, random);
    of.x[static_cast<size_t>(columns) - 1] = std::bit_cast<float>(0x7fffffffu);  // a NaN
    of.x[static_cast<size_t>(2 * columns) - 1] = INFINITY;
    const auto matrix = *fast_->LoadMatrix(of.matrix.source(), nullptr);
    const auto got = RunRoots(*fast_, *matrix, Upload(*fast_, of.x), rows);
    for (size_t i = 0; i < 2 * 5; ++i) EXPECT_FALSE(std::isfinite(got[i])) << rows << ", " << i;
  }
}

// Of several panels where the matrix is wide: the last of its rows are in one of another size.
TEST_P(CudaFast, ManyRowsAreProductsOfRoundedNumbers) {
  Random random(static_cast<uint64_t>(GetParam()) + 47);
  for (const int64_t columns : Widths(GetParam())) {
    const Case of(GetParam(), 83, columns, 70, random);
    const LeafCut one{1, 0, CutColumns(columns, 1, LeafUnit(GetParam()))};
    ASSERT_NO_FATAL_FAILURE(ExpectRounded(of, one, 65));
  }
}

TEST_P(CudaFast, ManyRowsOfSeveralRootsAreProductsOfRoundedNumbers) {
  Random random(static_cast<uint64_t>(GetParam()) + 48);
  const int64_t columns = FormatOf(GetParam()).elements == 256 ? 768 : 512;
  const Case of(GetParam(), 9, columns, 66, random);
  const LeafCut five{8, 1, CutColumns(columns, 5, 32)};
  ExpectRounded(of, five, 66);
}

TEST_P(CudaFast, ARowDoesNotDependOnTheBatchOfItsBucket) {
  Random random(static_cast<uint64_t>(GetParam()) + 49);
  const int64_t columns = Widths(GetParam()).back();
  const Case of(GetParam(), 20, columns, 128, random);
  const auto matrix = *fast_->LoadMatrix(of.matrix.source(), nullptr);
  const auto all = RunRoots(*fast_, *matrix, Upload(*fast_, of.x), 128);
  const auto some = RunRoots(*fast_, *matrix, Upload(*fast_, of.x), 67);
  EXPECT_EQ(FirstDifference(std::span(all).first(67 * 20), some), -1);
}

}  // namespace
}  // namespace facet
