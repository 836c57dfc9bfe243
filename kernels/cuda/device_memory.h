#ifndef FACET_KERNELS_CUDA_DEVICE_MEMORY_H_
#define FACET_KERNELS_CUDA_DEVICE_MEMORY_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/stream_wait.h"

namespace facet::cuda {

// What one device's memory went to. Owns every allocation until it is destroyed, so that running
// out of memory can say what needs how much. Used by the device's thread.
class DeviceMemory {
 public:
  // `device` names it in sentences: "cuda:0 (NVIDIA H100)".
  explicit DeviceMemory(std::string device) : device_(std::move(device)) {}
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory();

  // ResourceExhausted: "cuda:0 (...): keys and values need 12.00 GiB, of which 3.10 GiB are free;
  // weights take 70.00 GiB". `what` is a plural noun. Never null, also for 0 bytes.
  absl::StatusOr<void*> Allocate(std::string_view what, int64_t bytes);
  // Host memory that the device copies from and to; the caller frees it (FreePinned).
  // ResourceExhausted: "cuda:0 (...): step tables need 0.01 GiB of pinned host memory; ...".
  absl::StatusOr<std::byte*> AllocatePinned(std::string_view what, int64_t bytes) const;
  // Gives back what Allocate() gave. REQUIRES: no kernel uses it any more.
  void Release(void* memory);

 private:
  struct Piece {
    std::string what;
    int64_t bytes = 0;
  };
  std::string Describe() const;

  const std::string device_;
  std::map<void*, Piece> pieces_;
};

// A place on the device through which small arrays reach the kernels of a stream: Restart(), then
// Put() or Make() and Flush(), any number of times. Arrays of the same sizes get the same addresses
// after every Restart(), so kernels can be replayed on them. Kernels that were put on the stream
// before a Restart() read what they were meant to; those that come after it no longer do.
class UploadArea {
 public:
  UploadArea() = default;
  UploadArea(const UploadArea&) = delete;
  UploadArea& operator=(const UploadArea&) = delete;
  ~UploadArea();

  // Again: another size. Borrows the rest. REQUIRES: the stream is idle.
  absl::Status Create(std::string_view what, int64_t bytes, DeviceMemory* memory, StreamWait* wait);
  int64_t size() const { return size_; }
  // What an array of so many bytes takes.
  static int64_t Padded(int64_t bytes) { return (bytes + 15) / 16 * 16; }
  // For further arrays, each padded.
  int64_t room() const { return size_ - next_; }

  // Waits only for the copies from before the last Restart() but one. REQUIRES: all is flushed.
  void Restart();
  // Where the array will be on the device. REQUIRES: there is room, as for Make().
  template <typename T>
  const T* Put(std::span<const T> values) {
    const T* device = nullptr;
    std::copy(values.begin(), values.end(),
              Make(static_cast<int64_t>(values.size()), &device).begin());
    return device;
  }
  // An array of `count` to be filled in by the caller; *device is where it will be.
  template <typename T>
  std::span<T> Make(int64_t count, const T** device) {
    const int64_t at = Take(count * static_cast<int64_t>(sizeof(T)));
    *device = reinterpret_cast<const T*>(device_ + at);
    return std::span<T>(reinterpret_cast<T*>(half() + at), static_cast<size_t>(count));
  }
  // Copies what was put since the last Flush().
  void Flush();

 private:
  int64_t Take(int64_t bytes);
  std::byte* half() const { return host_ + half_ * size_; }
  void Destroy();

  DeviceMemory* memory_ = nullptr;
  StreamWait* wait_ = nullptr;
  std::byte* device_ = nullptr;
  std::byte* host_ = nullptr;         // pinned: two halves, one being filled in, one being copied
  std::array<Event, 2> copied_ = {};  // by half, after its last Flush()
  int64_t size_ = 0;
  int half_ = 0;
  int64_t begin_ = 0;  // of what is put and not flushed
  int64_t next_ = 0;
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_DEVICE_MEMORY_H_
