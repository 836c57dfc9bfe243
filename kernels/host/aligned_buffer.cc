#include "kernels/host/aligned_buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/status.h"

namespace facet {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kMappedFrom = size_t{1} << 20;

}  // namespace

absl::StatusOr<AlignedBuffer> AlignedBuffer::Make(size_t bytes) {
  AlignedBuffer buffer;
  if (bytes == 0) return buffer;
  buffer.size_ = bytes;
  buffer.mapped_ = bytes >= kMappedFrom;
  if (buffer.mapped_) {
    void* mapping =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    buffer.data_ = mapping == MAP_FAILED ? nullptr : static_cast<std::byte*>(mapping);
  } else {
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    buffer.data_ = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
    if (buffer.data_ != nullptr) std::memset(buffer.data_, 0, rounded);
  }
  if (buffer.data_ == nullptr) return ResourceExhausted("no memory for {} bytes", bytes);
  return buffer;
}

absl::StatusOr<AlignedBuffer> AlignedBuffer::MakeLarge(size_t bytes) {
  FACET_ASSIGN_OR_RETURN(AlignedBuffer buffer, Make(bytes));
  if (buffer.mapped_) ::madvise(buffer.data_, bytes, MADV_HUGEPAGE);  // a hint
  return buffer;
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept { *this = std::move(other); }

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ == nullptr) return;
  if (mapped_) {
    munmap(data_, size_);
  } else {
    std::free(data_);
  }
}

}  // namespace facet
