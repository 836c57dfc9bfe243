#ifndef FACET_KERNELS_CUDA_CUBLASLT_API_H_
#define FACET_KERNELS_CUDA_CUBLASLT_API_H_

// What --arithmetic=fast asks of cuBLASLt. cublaslt_dlopen.cc gives it over libcublasLt, which is
// opened when it is first wanted; tests/cuda_emulator gives it in host memory, with faults. Nothing
// else knows cuBLASLt's header.
//
// Threads: a handle and its plans belong to one device's thread, whose current device (driver.h's
// UseDevice) it is.

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/driver.h"

namespace facet::cuda {

// out[r * out_stride + i] = the sum over k of weights[i * weight_stride + k] * x[r * x_stride + k]:
// bf16 in; products, sums and results in float32.
struct LtShape {
  int64_t outputs = 0;  // i
  int64_t rows = 0;     // r
  int64_t columns = 0;  // k
  int64_t weight_stride = 0;
  int64_t x_stride = 0;
  int64_t out_stride = 0;
  auto operator<=>(const LtShape&) const = default;
};

// All addresses that a plan is run with are multiples of so many bytes.
inline constexpr int kLtAlignment = 16;

// A shape with the algorithm that was chosen for it once: every run takes the same one, which adds
// the products of an element in one order and in one sum.
class LtPlan {
 public:
  virtual ~LtPlan() = default;
  // Puts the product on the stream, whether that is being captured or not. Returns 0, or minus the
  // cublasStatus_t.
  virtual int Run(const uint16_t* weights, const uint16_t* x, float* out, void* workspace,
                  Stream stream) const = 0;
};

class LtHandle {
 public:
  virtual ~LtHandle() = default;
  // The best algorithm by cuBLASLt's own estimate that needs no more than so much work space.
  // Unimplemented where it knows none. The handle must outlive the plan.
  virtual absl::StatusOr<std::unique_ptr<LtPlan>> Plan(const LtShape& shape,
                                                       int64_t workspace_bytes) = 0;
};

class CublasLt {
 public:
  virtual ~CublasLt() = default;
  virtual int64_t version() = 0;  // 130100 is 13.1.0
  // For the calling thread's current device.
  virtual absl::StatusOr<std::unique_ptr<LtHandle>> MakeHandle() = 0;
};

// Lives as long as the process. FailedPrecondition says what is missing: the library, a function in
// it, a version that is new enough, or the header when this was built.
absl::StatusOr<CublasLt*> OpenCublasLt();

// "cuBLASLt: CUBLAS_STATUS_EXECUTION_FAILED (13)"; OK for 0.
absl::Status CublasLtStatus(int status);

// A run, as LaunchQueue holds it.
struct LibraryProduct {
  const LtPlan* plan = nullptr;
  const uint16_t* weights = nullptr;
  const uint16_t* x = nullptr;
  float* out = nullptr;
  void* workspace = nullptr;
  bool operator==(const LibraryProduct&) const = default;
};
inline int RunLibraryProduct(Stream stream, const LibraryProduct& args) {
  return args.plan->Run(args.weights, args.x, args.out, args.workspace, stream);
}
// What the code that a queued call returned means: a launch's, or a library's where it is negative.
inline absl::Status CallStatus(int code) {
  return code < 0 ? CublasLtStatus(-code) : LaunchStatus(code);
}

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_CUBLASLT_API_H_
