#include "tests/cuda_emulator/cublaslt_host.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <mutex>

#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/cublaslt_api.h"
#include "tests/cuda_emulator/driver_host.h"
#include "tests/cuda_emulator/stream.h"

namespace facet::cuda_emulator {
namespace {

using cuda::LtHandle;
using cuda::LtPlan;
using cuda::LtShape;

// What a plan says that it needs, and overwrites.
constexpr int64_t kWorkspaceBytes = 4096;

std::atomic<int64_t> plans = 0;
std::atomic<int64_t> runs = 0;

struct Settings {
  std::mutex mutex;
  CublasLtFaults faults;
};
Settings& TheSettings() {
  static Settings settings;
  return settings;
}
CublasLtFaults Faults() {
  const std::lock_guard lock(TheSettings().mutex);
  return TheSettings().faults;
}

float Bf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

void CheckPlace(const void* from, int64_t elements, int64_t size, const char* what) {
  FACET_CHECK(InDeviceMemory(from, elements * size), "{} outside device memory", what);
  FACET_CHECK(reinterpret_cast<uintptr_t>(from) % cuda::kLtAlignment == 0, "{} is not aligned",
              what);
}

// Elements from the first to the last of a matrix.
int64_t Extent(int64_t rows, int64_t stride, int64_t columns) {
  return (rows - 1) * stride + columns;
}

void Multiply(const LtShape& shape, const uint16_t* weights, const uint16_t* x, float* out) {
  for (int64_t r = 0; r < shape.rows; ++r) {
    for (int64_t i = 0; i < shape.outputs; ++i) {
      double sum = 0;  // products of bf16 are exact in it
      for (int64_t k = 0; k < shape.columns; ++k) {
        sum += double{Bf16(weights[i * shape.weight_stride + k])} * Bf16(x[r * shape.x_stride + k]);
      }
      out[r * shape.out_stride + i] = static_cast<float>(sum);
    }
  }
}

class HostPlan final : public LtPlan {
 public:
  explicit HostPlan(const LtShape& shape) : shape_(shape) {}

  int Run(const uint16_t* weights, const uint16_t* x, float* out, void* workspace,
          cuda::Stream stream) const override {
    const CublasLtFaults faults = Faults();
    if (faults.run_status != 0) return -faults.run_status;
    if (stream->capturing() && faults.capture_status != 0) return -faults.capture_status;
    const LtShape& s = shape_;
    CheckPlace(weights, Extent(s.outputs, s.weight_stride, s.columns), 2, "weights");
    CheckPlace(x, Extent(s.rows, s.x_stride, s.columns), 2, "activations");
    CheckPlace(out, Extent(s.rows, s.out_stride, s.outputs), sizeof(float), "results");
    CheckPlace(workspace, kWorkspaceBytes, 1, "a work space");
    ++runs;
    stream->Put([s, weights, x, out, workspace] {
      std::memset(workspace, 0xff, kWorkspaceBytes);
      const int64_t results = Extent(s.rows, s.out_stride, s.outputs);
      std::memset(out, 0xff, static_cast<size_t>(results) * sizeof(float));
      Multiply(s, weights, x, out);
      return 0;
    });
    return 0;
  }

 private:
  const LtShape shape_;
};

class HostHandle final : public LtHandle {
 public:
  absl::StatusOr<std::unique_ptr<LtPlan>> Plan(const LtShape& shape,
                                               int64_t workspace_bytes) override {
    if (!Faults().plans || workspace_bytes < kWorkspaceBytes) {
      return absl::UnimplementedError(
          fmt::format("cuBLASLt knows no algorithm for {} x {} x {} within {} bytes of work space",
                      shape.outputs, shape.rows, shape.columns, workspace_bytes));
    }
    FACET_CHECK(shape.outputs > 0 && shape.rows > 0 && shape.columns > 0);
    FACET_CHECK(shape.weight_stride >= shape.columns && shape.x_stride >= shape.columns);
    FACET_CHECK(shape.out_stride >= shape.outputs);
    ++plans;
    return std::make_unique<HostPlan>(shape);
  }
};

class HostCublasLt final : public cuda::CublasLt {
 public:
  int64_t version() override { return 130000; }
  absl::StatusOr<std::unique_ptr<LtHandle>> MakeHandle() override {
    FACET_RETURN_IF_ERROR(cuda::CublasLtStatus(Faults().handle_status));
    return std::make_unique<HostHandle>();
  }
};

}  // namespace

void SetCublasLtFaults(const CublasLtFaults& faults) {
  const std::lock_guard lock(TheSettings().mutex);
  TheSettings().faults = faults;
}
int64_t CublasLtPlans() { return plans; }
int64_t CublasLtRuns() { return runs; }

}  // namespace facet::cuda_emulator

namespace facet::cuda {

absl::StatusOr<CublasLt*> OpenCublasLt() {
  if (!cuda_emulator::Faults().found) {
    return FailedPrecondition("cuBLASLt: libcublasLt.so.13: cannot open shared object file");
  }
  static cuda_emulator::HostCublasLt library;
  return &library;
}

}  // namespace facet::cuda
