#ifndef FACET_KERNELS_HOST_ALIGNED_BUFFER_H_
#define FACET_KERNELS_HOST_ALIGNED_BUFFER_H_

#include <cstddef>

#include "absl/status/statusor.h"

namespace facet {

// Zeroed memory, aligned to 64 bytes at least. Large buffers are mapped: page-aligned, and a page
// costs memory only once it is written. Movable.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // ResourceExhausted where the system gives no more.
  static absl::StatusOr<AlignedBuffer> Make(size_t bytes);
  // The same for what is written as a whole at once, and read in streams: lies in the processor's
  // large pages where the system has them, which also come faster.
  static absl::StatusOr<AlignedBuffer> MakeLarge(size_t bytes);

  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
  ~AlignedBuffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  bool mapped_ = false;
};

}  // namespace facet

#endif  // FACET_KERNELS_HOST_ALIGNED_BUFFER_H_
