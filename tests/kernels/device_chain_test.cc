// Products of rows that other operations have written, which a device may keep in another form
// (Device::AllocateInputs): every way to write the rows, or to read others, in between gives what
// the reference device gives.

#include <gtest/gtest.h>

#include <functional>
#include <utility>

#include "kernels/reference/reference_device.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

constexpr int kRows = 15;
constexpr int kColumns = 96;
constexpr int kOutputs = 40;

// A device with matrices, rows to be normed and a place for the result.
class Chain {
 public:
  Chain(Device& device, TensorType type) : device_(device) {
    Random random(5);
    const TestMatrix matrix = MakeMatrix(type, kOutputs, kColumns, 0.1f, random);
    const TestMatrix up = MakeMatrix(type, kOutputs, kColumns, 0.1f, random);
    matrix_ = *device.LoadMatrix(matrix.source(), nullptr);
    up_ = *device.LoadMatrix(up.source(), nullptr);
    weight_ = Upload(device, MakeFloats(kColumns, 1, random));
    x_ = Upload(device, MakeActivations(kRows, kColumns, random));
    other_ = Upload(device, MakeActivations(kRows, kColumns, random));
    normed_ = *device.AllocateFloats(kRows * kColumns);
    Multiply(other_, kRows);  // a device may look at what it has been asked before
  }

  // Norms rows [begin, end).
  void Norm(int begin, int end) {
    device_.RmsNorm(Row(x_, begin), end - begin, kColumns, weight_, 1e-6f, Row(normed_, begin));
  }
  void AddAndNorm(int begin, int end) {
    device_.ResidualNorm({.residual = Row(x_, begin),
                          .update = other_,
                          .post_weight = weight_,
                          .next_weight = weight_,
                          .out = Row(normed_, begin),
                          .rows = end - begin,
                          .width = kColumns,
                          .epsilon = 1e-6f});
  }
  // Appends the products of the first `rows` rows to the result.
  void Multiply(Floats rows_from, int rows) {
    const Floats out = *device_.AllocateFloats(rows * kOutputs);
    const Matrix* part = matrix_.get();
    device_.Product(std::span(&part, 1), rows_from, rows, out);
    Append(out);
    device_.GatedProduct(Activation::kSilu, *matrix_, *up_, rows_from, rows, out);
    Append(out);
  }
  void Overwrite(int row) { device_.CopyIn(std::vector<float>(kColumns, 0.5f), Row(normed_, row)); }
  void GatherInto(int row) {
    const int32_t rows[] = {3, 1};
    device_.GatherRows(other_, rows, kColumns, Row(normed_, row));
  }
  // The products of other rows into rows [row, row + 2), seen as so many floats.
  void MultiplyInto(int row) {
    const Matrix* part = matrix_.get();
    device_.Product(std::span(&part, 1), other_, 2 * kColumns / kOutputs, Row(normed_, row));
  }

  Floats normed() const { return normed_; }
  Floats other() const { return other_; }
  const std::vector<float>& result() const { return result_; }

 private:
  static Floats Row(Floats x, int row) {
    return {x.data + row * kColumns, x.size - row * kColumns};
  }
  void Append(Floats out) {
    const std::vector<float> values = Download(device_, out);
    result_.insert(result_.end(), values.begin(), values.end());
  }

  Device& device_;
  std::unique_ptr<Matrix> matrix_, up_;
  Floats weight_, x_, other_, normed_;
  std::vector<float> result_;
};

void ExpectEqual(const std::function<void(Chain&)>& body) {
  for (const TensorType type : {TensorType::kQ8_0, TensorType::kQ4_1, TensorType::kF16}) {
    const std::unique_ptr<Device> reference = MakeReferenceDevice();
    Chain expected(*reference, type);
    body(expected);
    for (const NamedDevice& named : TestedDevices({1, 3})) {
      Chain got(*named.device, type);
      body(got);
      EXPECT_EQ(FirstDifference(got.result(), expected.result()), -1) << named.name;
    }
  }
}

TEST(DeviceChain, ProductOfNormedRows) {
  ExpectEqual([](Chain& chain) {
    chain.Norm(0, kRows);
    chain.Multiply(chain.normed(), kRows);
    chain.AddAndNorm(0, kRows);
    chain.Multiply(chain.normed(), kRows);
    chain.AddAndNorm(0, 1);
    chain.Multiply(chain.normed(), 1);
  });
}

TEST(DeviceChain, RowsNormedInPartsWithOtherProductsBetween) {
  ExpectEqual([](Chain& chain) {
    chain.AddAndNorm(0, 8);
    chain.Multiply(chain.other(), 7);
    chain.AddAndNorm(8, kRows);
    chain.Multiply(chain.normed(), kRows);
    chain.AddAndNorm(8, kRows);  // again, without what lies before
    chain.Multiply(chain.normed(), kRows);
  });
}

TEST(DeviceChain, FewerRowsThanWereNormed) {
  ExpectEqual([](Chain& chain) {
    chain.Norm(0, kRows);
    chain.Multiply(chain.normed(), 4);
    chain.Multiply(chain.normed(), kRows);
  });
}

TEST(DeviceChain, RowsThatHaveChangedSinceTheyWereNormed) {
  for (const auto change : {&Chain::Overwrite, &Chain::GatherInto, &Chain::MultiplyInto}) {
    for (const int row : Shapes<int>({0, 6, kRows - 2}, {6})) {
      ExpectEqual([&](Chain& chain) {
        chain.Norm(0, kRows);
        chain.Multiply(chain.normed(), kRows);
        (chain.*change)(row);
        chain.Multiply(chain.normed(), kRows);
      });
    }
  }
}

// The feed-forward part of a layer, with arrays that only products read.
class FeedForward {
 public:
  static constexpr int kFfn = 160;
  static constexpr int kRowsMax = 130;  // panels are unpacked from 61 on

  FeedForward(Device& device, TensorType type, TensorType down_type) : device_(device) {
    Random random(7);
    const TestMatrix gate = MakeMatrix(type, kFfn, kColumns, 0.1f, random);
    const TestMatrix up = MakeMatrix(type, kFfn, kColumns, 0.1f, random);
    const TestMatrix down = MakeMatrix(down_type, kOutputs, kFfn, 0.1f, random);
    const LeafCut cut{2, 0, CutColumns(kFfn, 2, 32)};
    gate_ = *device.LoadMatrix(gate.source(), nullptr);
    up_ = *device.LoadMatrix(up.source(), nullptr);
    down_ = *device.LoadMatrix(down.source(), &cut);
    weight_ = Upload(device, MakeFloats(kColumns, 1, random));
    x_ = Upload(device, MakeActivations(kRowsMax, kColumns, random));
    update_ = Upload(device, MakeActivations(kRowsMax, kColumns, random));
    const Matrix* const readers[] = {gate_.get(), up_.get()};
    const Matrix* const reader = down_.get();
    normed_ = *device.AllocateInputs(kRowsMax * kColumns, readers);
    gated_ = *device.AllocateInputs(kRowsMax * kFfn, std::span(&reader, 1));
    roots_ = *device.AllocateFloats(kRowsMax * kOutputs);
  }

  void Norm(int rows) { device_.RmsNorm(x_, rows, kColumns, weight_, 1e-6f, normed_); }
  void AddAndNorm(int rows) {
    device_.ResidualNorm({.residual = x_,
                          .update = update_,
                          .post_weight = weight_,
                          .next_weight = weight_,
                          .out = normed_,
                          .rows = rows,
                          .width = kColumns,
                          .epsilon = 1e-6f});
  }
  void CopyFloats(int rows) {
    device_.CopyIn(std::vector<float>(static_cast<size_t>(rows * kColumns), 0.5f), normed_);
  }
  // The products of `rows` rows with one matrix, and through all three.
  void Multiply(int rows) {
    const Matrix* part = gate_.get();
    const Floats out = *device_.AllocateFloats(rows * kFfn);
    device_.Product(std::span(&part, 1), normed_, rows, out);
    Append(out, rows * kFfn);
    device_.GatedProduct(Activation::kGeluTanh, *gate_, *up_, normed_, rows, gated_);
    device_.ProductRoots(*down_, gated_, rows, roots_);
    Append(roots_, rows * kOutputs);
  }
  const std::vector<float>& result() const { return result_; }

 private:
  void Append(Floats out, int size) {
    const std::vector<float> values = Download(device_, out);
    result_.insert(result_.end(), values.begin(), values.begin() + size);
  }

  Device& device_;
  std::unique_ptr<Matrix> gate_, up_, down_;
  Floats weight_, x_, update_, normed_, gated_, roots_;
  std::vector<float> result_;
};

void FeedRows(FeedForward& layer, int rows) {
  layer.Norm(rows);
  layer.Multiply(rows);
  layer.AddAndNorm(rows);
  layer.Multiply(rows);
  layer.CopyFloats(rows);
  layer.Multiply(rows);
}

TEST(DeviceChain, RowsThatOnlyProductsRead) {
  const std::pair<TensorType, TensorType> kTypes[] = {{TensorType::kQ8_0, TensorType::kQ4_0},
                                                      {TensorType::kQ4_1, TensorType::kQ8_0},
                                                      {TensorType::kF16, TensorType::kQ8_0},
                                                      {TensorType::kQ8_0, TensorType::kF16}};
  for (const auto& [type, down_type] : kTypes) {
    for (const int rows : Shapes<int>({1, 4, 5, 6, 7, 15, 49, 130}, {1, 7})) {
      const std::unique_ptr<Device> reference = MakeReferenceDevice();
      FeedForward expected(*reference, type, down_type);
      FeedRows(expected, rows);
      FeedRows(expected, 2);
      for (const NamedDevice& named : TestedDevices({1, 3})) {
        FeedForward got(*named.device, type, down_type);
        FeedRows(got, rows);
        FeedRows(got, 2);
        EXPECT_EQ(FirstDifference(got.result(), expected.result()), -1)
            << named.name << ", " << rows << " rows";
      }
    }
  }
}

}  // namespace
}  // namespace facet
