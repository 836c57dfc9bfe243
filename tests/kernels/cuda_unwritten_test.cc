// Every element that an operation of the CUDA device promises is written, whatever its array held
// before: under the emulator an array of the device is memory that a test may fill and look at.

#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <string>

#include "kernels/host/matrix_source.h"
#include "tests/cuda_emulator/unwritten.h"
#include "tests/kernels/test_data.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

constexpr int kRows = 19;  // more than a tile of activations, and no whole number of them

class CudaUnwritten : public testing::Test {
 protected:
  Floats Filled(int64_t size) { return Upload(device(), MakeFloats(size, 1, random_)); }

  // That `run`, which gives the same every time, writes all of its output of `size` floats.
  void ExpectWritten(int64_t size, const std::string& what,
                     const std::function<void(Floats out)>& run) {
    const Floats out = *device().AllocateFloats(size);
    const std::span<float> floats(out.data, static_cast<size_t>(size));
    const int64_t first = cuda_emulator::FirstUnwritten(std::as_writable_bytes(floats), [&] {
      run(out);
      device().Synchronize();
    });
    EXPECT_EQ(first < 0 ? -1 : first / static_cast<int64_t>(sizeof(float)), -1) << what;
  }

  Device& device() { return *devices_.front().device; }

  std::vector<NamedDevice> devices_ = TestedDevices({1});
  Random random_{21};
};

TEST_F(CudaUnwritten, NothingByProducts) {
  for (const TensorType type : AllTensorTypes()) {
    const int64_t block = FormatOf(type).elements;
    const int64_t columns = block == 1 ? 70 : 3 * std::max<int64_t>(block, 32);
    const TestMatrix matrix = MakeMatrix(type, 37, columns, 0.1f, random_);
    const LeafCut cut{4, 0, CutColumns(columns, 4, LeafUnit(type))};
    const auto plain = *device().LoadMatrix(matrix.source(), nullptr);
    const auto cut_up = *device().LoadMatrix(matrix.source(), &cut);
    const Floats x = Filled(kRows * columns);
    const std::string name(FormatOf(type).name);
    for (const int rows : {1, kRows}) {
      const Matrix* const part = plain.get();
      ExpectWritten(rows * 37, name + ", product",
                    [&](Floats out) { device().Product(std::span(&part, 1), x, rows, out); });
      ExpectWritten(rows * 37, name + ", gated product", [&](Floats out) {
        device().GatedProduct(Activation::kSilu, *plain, *plain, x, rows, out);
      });
      ExpectWritten(cut_up->root_count() * rows * 37, name + ", roots",
                    [&](Floats out) { device().ProductRoots(*cut_up, x, rows, out); });
    }
    const std::vector<int32_t> ids = {36, 0, 5};
    ExpectWritten(std::ssize(ids) * columns, name + ", embedding",
                  [&](Floats out) { device().EmbedRows(*plain, 0, ids, 2, out); });
  }
}

TEST_F(CudaUnwritten, NothingByOperationsOnRows) {
  for (const int width : {1, 31, 129, 640}) {
    const std::string what = std::to_string(width) + " wide";
    const std::vector<float> values = MakeFloats(kRows * width, 1, random_);
    const Floats x = Upload(device(), values);
    const Floats residual = *device().AllocateFloats(kRows * width);
    const Floats update = Filled(kRows * width);
    const Floats weight = Filled(width);
    ExpectWritten(kRows * width, what + ", norm",
                  [&](Floats out) { device().RmsNorm(x, kRows, width, weight, 1e-6f, out); });
    for (const Floats post : {Floats(), weight}) {
      ExpectWritten(kRows * width, what + ", residual norm", [&](Floats out) {
        device().CopyIn(values, residual);
        device().ResidualNorm({residual, update, post, weight, out, kRows, width, 1e-6f});
      });
    }
    const std::vector<int32_t> rows = {kRows - 1, 0, 3};
    ExpectWritten(std::ssize(rows) * width, what + ", gathering",
                  [&](Floats out) { device().GatherRows(x, rows, width, out); });
  }
}

// Contexts of one split and of several, heads for tensor cores and others.
TEST_F(CudaUnwritten, NothingByAttention) {
  constexpr int kBlocks = 16, kBlockTokens = 16;
  constexpr int kHeads = 3;
  for (const KvType type : {KvType::kF16, KvType::kF32}) {
    for (const int head_dim : {16, 40, 64}) {
      std::vector<NamedDevice> devices = TestedDevices({1});
      devices_.swap(devices);
      std::array<KvPoolSpec, kKvPools> pools;
      pools[kFullPool] = {1, kBlocks, kBlockTokens, 1, head_dim, type};
      ASSERT_TRUE(device().AllocateKv(pools).ok());
      AttentionSpec spec;
      spec.heads = kHeads;
      spec.kv_heads = 1;
      spec.head_dim = head_dim;
      spec.kv_of_head.assign(kHeads, 0);
      std::vector<int32_t> blocks(kBlocks);
      std::iota(blocks.begin(), blocks.end(), 0);
      const int width = (kHeads + 2) * head_dim;
      for (const auto& [first, rows] : {std::pair(0, 70), {70, 1}, {71, kRows}}) {
        SequenceRun run;
        run.rows = rows;
        run.first_position = first;
        run.blocks = {blocks, {}};
        const StepLayout layout{rows, std::span(&run, 1)};
        const Floats qkv = Filled(rows * width);
        device().BeginStep(layout);
        device().RopeAndStore(spec, qkv);
        ExpectWritten(rows * kHeads * head_dim,
                      "heads of " + std::to_string(head_dim) + ", " + std::to_string(rows) +
                          " rows from " + std::to_string(first),
                      [&](Floats out) {
                        device().BeginStep(layout);
                        device().Attend(spec, qkv, out);
                      });
      }
    }
  }
}

}  // namespace
}  // namespace facet
