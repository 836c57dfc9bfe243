#ifndef FACET_KERNELS_CUDA_CUDA_CONTEXT_H_
#define FACET_KERNELS_CUDA_CUDA_CONTEXT_H_

#include <cstdint>

#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/driver.h"

namespace facet::cuda {

// A step's operation that fails means a broken device or a bug of ours: a rank that doubts itself
// stops, and its group's work moves on.
inline void CheckOk(const absl::Status& status, const char* what) {
  FACET_CHECK(status.ok(), "{}: {}", what, MessageOf(status));
}
inline void CheckLaunch(int code, const char* what) {
  if (code != 0) CheckOk(LaunchStatus(code), what);
}

// What the parts of one device share: its stream, in whose order everything happens, and what they
// need for the length of one operation.
struct CudaContext {
  Stream stream = nullptr;
  DeviceMemory* memory = nullptr;
  UploadRing* uploads = nullptr;  // small arguments of one operation
  std::byte* workspace = nullptr;
  int64_t workspace_bytes = 0;

  float* workspace_floats() const { return reinterpret_cast<float*>(workspace); }
  int64_t workspace_size() const { return workspace_bytes / static_cast<int64_t>(sizeof(float)); }
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_CUDA_CONTEXT_H_
