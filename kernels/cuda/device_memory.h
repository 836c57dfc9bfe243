#ifndef FACET_KERNELS_CUDA_DEVICE_MEMORY_H_
#define FACET_KERNELS_CUDA_DEVICE_MEMORY_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/driver.h"

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

// A place in pinned host memory and its like on the device, through which small arrays reach the
// kernels of a stream: Reserve(), then Put() each, then Flush(). What was put stays valid for the
// kernels launched before the next Reserve(), which may reuse the place.
class UploadRing {
 public:
  UploadRing() = default;
  UploadRing(const UploadRing&) = delete;
  UploadRing& operator=(const UploadRing&) = delete;
  ~UploadRing();

  // Again: another size. REQUIRES: the stream is idle.
  absl::Status Create(std::string_view what, int64_t bytes, DeviceMemory* memory, Stream stream);
  int64_t size() const { return size_; }
  // What an array of so many bytes takes.
  static int64_t Padded(int64_t bytes) { return (bytes + 15) / 16 * 16; }

  // Makes room for arrays of `bytes`, each padded. Waits only where the ring comes around to
  // copies that are still on their way. REQUIRES: bytes <= size().
  void Reserve(int64_t bytes);
  // Where the array will be on the device.
  template <typename T>
  const T* Put(std::span<const T> values) {
    T* to = static_cast<T*>(Take(static_cast<int64_t>(values.size_bytes())));
    return static_cast<const T*>(PutBytes(std::as_bytes(values), to));
  }
  // An array of `count` to be filled in by the caller; *device is where it will be.
  template <typename T>
  std::span<T> Make(int64_t count, const T** device) {
    T* to = static_cast<T*>(Take(count * static_cast<int64_t>(sizeof(T))));
    *device = reinterpret_cast<const T*>(OnDevice(to));
    return std::span<T>(to, static_cast<size_t>(count));
  }
  // Copies what was put since Reserve().
  void Flush();

 private:
  void* Take(int64_t bytes);
  const void* PutBytes(std::span<const std::byte> bytes, void* to);
  const std::byte* OnDevice(const void* host) const {
    return device_ + (static_cast<const std::byte*>(host) - host_);
  }
  void Destroy();

  DeviceMemory* memory_ = nullptr;
  Stream stream_ = nullptr;
  Event copied_ = nullptr;  // after the last Flush()
  std::byte* host_ = nullptr;
  std::byte* device_ = nullptr;
  int64_t size_ = 0;
  int64_t begin_ = 0;  // of what is reserved
  int64_t next_ = 0;   // of what is put
  int64_t end_ = 0;
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_DEVICE_MEMORY_H_
