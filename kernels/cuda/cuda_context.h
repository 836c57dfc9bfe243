#ifndef FACET_KERNELS_CUDA_CUDA_CONTEXT_H_
#define FACET_KERNELS_CUDA_CUDA_CONTEXT_H_

#include <bit>
#include <cstdint>
#include <initializer_list>

#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/stream_wait.h"

namespace facet::cuda {

class LaunchQueue;

// Steps of so many rows and fewer are decoding: few rows, many launches, and the same again soon.
inline constexpr int kReplayedRowsMax = 64;
// What a step or an operation of `rows` is made up to where launches are replayed, so that a few
// sequences of launches serve all of them.
inline int BucketOf(int rows) {
  if (rows < 1 || rows > kReplayedRowsMax) return rows;
  return static_cast<int>(std::bit_ceil(static_cast<unsigned>(rows)));
}
// So many floats for each of its rows does an operation touch in an array of `size`.
struct RowsOfArray {
  int64_t size = 0;
  int64_t width = 0;
};

// A step's operation that fails means a broken device or a bug of ours: a rank that doubts itself
// stops, and its group's work moves on.
inline void CheckOk(const absl::Status& status, const char* what) {
  FACET_CHECK(status.ok(), "{}: {}", what, MessageOf(status));
}
inline void CheckLaunch(int code, const char* what) {
  if (code != 0) CheckOk(CallStatus(code), what);
}

// What the parts of one device share: its stream, in whose order everything happens, and what they
// need for the length of one operation.
struct CudaContext {
  Stream stream = nullptr;
  StreamWait* wait = nullptr;  // for the stream
  DeviceMemory* memory = nullptr;
  LaunchQueue* launches = nullptr;
  UploadArea* uploads = nullptr;  // small arguments of one operation
  std::byte* workspace = nullptr;
  int64_t workspace_bytes = 0;
  int32_t* tokens = nullptr;  // by place: what KeepBest() keeps
  int places = 0;

  float* workspace_floats() const { return reinterpret_cast<float*>(workspace); }
  // The rows that an operation on `rows` launches for: the bucket's where launches are replayed and
  // every array has room for them. Rows depend on nothing but themselves, so what the rows behind
  // the last hold, and get, does not matter to any that was asked for.
  int LaunchedRows(int rows, std::initializer_list<RowsOfArray> arrays) const;
  // Of a wait for the stream: as CheckOk(), but where the group has broken, which ends no process.
  void CheckDone(const absl::Status& status, const char* what) const {
    if (!wait->broken()) CheckOk(status, what);
  }
  int64_t workspace_size() const { return workspace_bytes / static_cast<int64_t>(sizeof(float)); }
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_CUDA_CONTEXT_H_
