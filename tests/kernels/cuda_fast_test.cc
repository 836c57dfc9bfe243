// --arithmetic=fast beside its products (fast_product_test.cc): cuBLASLt's faults, plans, memory
// and graphs, over the emulator's stand-in.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/cuda_emulator/cublaslt_host.h"
#include "tests/cuda_emulator/driver_host.h"
#include "tests/kernels/fast_case.h"
#include "tests/kernels/test_data.h"

namespace facet {
namespace {

cuda::CudaDeviceOptions FastOptions() {
  cuda::CudaDeviceOptions options;
  options.fast = true;
  options.workspace_bytes = int64_t{8} << 20;
  options.panel_bytes = int64_t{64} << 10;  // so small that most matrices are several panels
  options.library_bytes = int64_t{8} << 10;
  options.graph_bytes = int64_t{1} << 20;
  options.graph_fallback = false;
  return options;
}

std::unique_ptr<Device> MakeFast(const cuda::CudaDeviceOptions& options = FastOptions()) {
  auto device = cuda::MakeCudaDevice(options);
  FACET_CHECK(device.ok(), "{}", MessageOf(device.status()));
  return *std::move(device);
}

// Weights that the library can read as they lie: from nine rows on, in steps that are replayed.
class CudaFastInPlace : public testing::Test {
 protected:
  CudaFastInPlace() : of_(TensorType::kBF16, 100, 64, 16, random_) {}
  ~CudaFastInPlace() override { cuda_emulator::SetCublasLtFaults({}); }

  // Four products of 16 rows in a step of as many.
  static std::vector<float> Step(Device& device, const Matrix& matrix, Floats x, Floats out) {
    const SequenceRun run = {.first_row = 0, .rows = 16, .first_position = 0, .blocks = {}};
    const StepLayout layout = {16, std::span(&run, 1)};
    device.BeginStep(layout);
    const Matrix* const parts[] = {&matrix, &matrix, &matrix, &matrix};
    device.Product(parts, x, 16, out);
    return Download(device, out);
  }
  void ExpectProducts(std::span<const float> got) const {
    for (size_t i = 0; i < got.size(); ++i) {
      const auto& w = of_.weights[i % 100];
      const auto x = of_.activations(static_cast<int64_t>(i) / 400);
      double exact = 0, terms = 0;
      for (size_t k = 0; k < w.size(); ++k) {
        exact += double{w[k]} * Rounded(x[k]);
        terms += std::fabs(double{w[k]} * Rounded(x[k]));
      }
      ASSERT_NEAR(got[i], exact, 64 * 0x1p-24 * terms) << i;
    }
  }

  Random random_{51};
  Case of_;
};

TEST_F(CudaFastInPlace, StepsAreReplayed) {
  const auto device = MakeFast();
  const auto matrix = *device->LoadMatrix(of_.matrix.source(), nullptr);
  const Floats x = Upload(*device, of_.x);
  const Floats out = *device->AllocateFloats(16 * 400);
  const int64_t launches = cuda_emulator::GraphLaunches();
  const int64_t runs = cuda_emulator::CublasLtRuns();
  for (int round = 0; round < 4; ++round) {
    for (float& value : of_.x) value = -value;
    device->CopyIn(of_.x, x);
    ASSERT_NO_FATAL_FAILURE(ExpectProducts(Step(*device, *matrix, x, out)));
  }
  EXPECT_EQ(cuda_emulator::GraphLaunches() - launches, 3);
  EXPECT_EQ(cuda_emulator::CublasLtRuns() - runs, 4 + 4) << "once by itself, once captured";
}

TEST_F(CudaFastInPlace, ACaptureThatTheLibraryRefusesLeavesLaunches) {
  cuda::CudaDeviceOptions options = FastOptions();
  options.graph_fallback = true;
  const auto device = MakeFast(options);
  const auto matrix = *device->LoadMatrix(of_.matrix.source(), nullptr);
  const Floats x = Upload(*device, of_.x);
  const Floats out = *device->AllocateFloats(16 * 400);
  cuda_emulator::SetCublasLtFaults({.capture_status = 14});
  const int64_t launches = cuda_emulator::GraphLaunches();
  for (int round = 0; round < 4; ++round) {
    ASSERT_NO_FATAL_FAILURE(ExpectProducts(Step(*device, *matrix, x, out)));
  }
  EXPECT_EQ(cuda_emulator::GraphLaunches(), launches);
}

class CudaFastLibrary : public testing::Test {
 protected:
  CudaFastLibrary() : matrix_(MakeMatrix(TensorType::kQ8_0, 20, 96, 0.1f, random_)) {}
  ~CudaFastLibrary() override { cuda_emulator::SetCublasLtFaults({}); }

  Random random_{52};
  TestMatrix matrix_;
};

TEST_F(CudaFastLibrary, AlgorithmsAreChosenAsMatricesAreLoaded) {
  const auto device = MakeFast();
  const auto matrix = *device->LoadMatrix(matrix_.source(), nullptr);
  const int64_t plans = cuda_emulator::CublasLtPlans();
  const Floats x = *device->AllocateFloats(600 * 96);
  const int64_t runs = cuda_emulator::CublasLtRuns();
  for (const int rows : {1, 65, 129, 512, 600}) RunRoots(*device, *matrix, x, rows);
  EXPECT_EQ(cuda_emulator::CublasLtRuns() - runs, 5) << "65, 129, 512, 512 + 88 rows";
  const auto again = *device->LoadMatrix(matrix_.source(), nullptr);
  EXPECT_EQ(cuda_emulator::CublasLtPlans(), plans) << "shapes that are known have theirs";
}

TEST_F(CudaFastLibrary, ThatIsMissingIsNamedAtTheStart) {
  cuda_emulator::SetCublasLtFaults({.found = false});
  const absl::Status status = cuda::MakeCudaDevice(FastOptions()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(status), testing::AllOf(testing::HasSubstr("--arithmetic=fast"),
                                                testing::HasSubstr("libcublasLt.so")));
  cuda::CudaDeviceOptions canonical = FastOptions();
  canonical.fast = false;
  EXPECT_TRUE(cuda::MakeCudaDevice(canonical).ok()) << "nobody asks for it";
}

TEST_F(CudaFastLibrary, ThatCannotStartIsToldAtTheStart) {
  cuda_emulator::SetCublasLtFaults({.handle_status = 1});
  EXPECT_THAT(MessageOf(cuda::MakeCudaDevice(FastOptions()).status()),
              testing::HasSubstr("CUBLAS_STATUS_NOT_INITIALIZED (1)"));
}

TEST_F(CudaFastLibrary, ThatHasNoAlgorithmRefusesTheMatrixByName) {
  const auto device = MakeFast();
  cuda_emulator::SetCublasLtFaults({.plans = false});
  const absl::Status status = device->LoadMatrix(matrix_.source(), nullptr).status();
  EXPECT_THAT(MessageOf(status), testing::AllOf(testing::HasSubstr(matrix_.name),
                                                testing::HasSubstr("knows no algorithm")));
}

TEST_F(CudaFastLibrary, ThatFailsEndsTheProcessAndSaysHow) {
  const auto device = MakeFast();
  const auto matrix = *device->LoadMatrix(matrix_.source(), nullptr);
  const Floats x = *device->AllocateFloats(70 * 96);
  cuda_emulator::SetCublasLtFaults({.run_status = 13});
  EXPECT_DEATH(RunRoots(*device, *matrix, x, 70),
               "a product by cuBLASLt: cuBLASLt: CUBLAS_STATUS_EXECUTION_FAILED");
}

TEST_F(CudaFastLibrary, RowsThatAreTooWideForAPanelAreRefused) {
  cuda::CudaDeviceOptions options = FastOptions();
  options.panel_bytes = 96;
  const auto device = MakeFast(options);
  const absl::Status status = device->LoadMatrix(matrix_.source(), nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(status), testing::HasSubstr("a row of 96 columns"));
}

TEST_F(CudaFastLibrary, ItsWorkSpacesAreThereBeforeTheFirstMatrix) {
  cuda::CudaDeviceOptions options = FastOptions();
  options.panel_bytes = int64_t{64} << 20;
  cuda_emulator::SetDeviceMemory(int64_t{64} << 20);
  const absl::Status status = cuda::MakeCudaDevice(options).status();
  cuda_emulator::SetDeviceMemory(int64_t{4} << 30);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(status), testing::HasSubstr("work spaces need 0.06 GiB"));
}

TEST(CudaFastDevice, NamesItsArithmetic) { EXPECT_EQ(MakeFast()->arithmetic(), "cuda-sm80-fast"); }

}  // namespace
}  // namespace facet
