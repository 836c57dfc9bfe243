#include "kernels/cuda/device_memory.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace facet::cuda {
namespace {

std::string GiB(int64_t bytes) {
  return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (int64_t{1} << 30));
}

}  // namespace

DeviceMemory::~DeviceMemory() {
  for (const auto& [memory, piece] : pieces_) Free(memory);
}

absl::StatusOr<void*> DeviceMemory::Allocate(std::string_view what, int64_t bytes) {
  absl::StatusOr<void*> memory = cuda::Allocate(std::max<int64_t>(bytes, 1));
  if (absl::IsResourceExhausted(memory.status())) {
    const absl::StatusOr<int64_t> free = FreeMemory();
    return ResourceExhausted("{}: {} need {}, of which {} are free{}", device_, what, GiB(bytes),
                             free.ok() ? GiB(*free) : "an unknown part", Describe());
  }
  if (!memory.ok()) return Annotate(memory.status(), device_);
  pieces_[*memory] = {std::string(what), bytes};
  return memory;
}

absl::StatusOr<std::byte*> DeviceMemory::AllocatePinned(std::string_view what,
                                                        int64_t bytes) const {
  const absl::StatusOr<void*> memory = cuda::AllocatePinned(std::max<int64_t>(bytes, 1));
  if (absl::IsResourceExhausted(memory.status())) {
    return ResourceExhausted("{}: {} need {} of pinned host memory, which the host does not give{}",
                             device_, what, GiB(bytes), Describe());
  }
  if (!memory.ok()) return Annotate(memory.status(), device_);
  return static_cast<std::byte*>(*memory);
}

void DeviceMemory::Release(void* memory) {
  FACET_CHECK(pieces_.erase(memory) == 1, "released memory that is not the device's");
  Free(memory);
}

std::string DeviceMemory::Describe() const {
  std::map<std::string, int64_t> sums;
  for (const auto& [memory, piece] : pieces_) sums[piece.what] += piece.bytes;
  std::string text;
  for (const auto& [what, bytes] : sums) {
    text += fmt::format("{} {} take {}", text.empty() ? ";" : ",", what, GiB(bytes));
  }
  return text;
}

UploadArea::~UploadArea() { Destroy(); }

void UploadArea::Destroy() {
  for (Event& event : copied_) {
    if (event != nullptr) DestroyEvent(std::exchange(event, nullptr));
  }
  if (host_ != nullptr) FreePinned(std::exchange(host_, nullptr));
  if (device_ != nullptr) memory_->Release(std::exchange(device_, nullptr));
  size_ = begin_ = next_ = 0;
}

absl::Status UploadArea::Create(std::string_view what, int64_t bytes, DeviceMemory* memory,
                                StreamWait* wait) {
  Destroy();
  memory_ = memory;
  wait_ = wait;
  const int64_t padded = Padded(std::max<int64_t>(bytes, 1));
  for (Event& event : copied_) {
    FACET_ASSIGN_OR_RETURN(event, MakeEvent());
  }
  FACET_ASSIGN_OR_RETURN(host_, memory->AllocatePinned(what, 2 * padded));
  FACET_ASSIGN_OR_RETURN(void* const device, memory->Allocate(what, padded));
  device_ = static_cast<std::byte*>(device);
  size_ = padded;
  return absl::OkStatus();
}

void UploadArea::Restart() {
  FACET_CHECK(next_ == begin_, "what was put before has not been flushed");
  half_ = 1 - half_;
  const absl::Status status = wait_->Until(copied_[static_cast<size_t>(half_)]);
  FACET_CHECK(status.ok() || wait_->broken(), "{}", MessageOf(status));
  begin_ = next_ = 0;
}

int64_t UploadArea::Take(int64_t bytes) {
  const int64_t at = next_;
  next_ += Padded(bytes);
  FACET_CHECK(next_ <= size_, "{} bytes for kernels in a place of {}", next_, size_);
  return at;
}

void UploadArea::Flush() {
  if (next_ > begin_) {
    const Stream stream = wait_->stream();
    absl::Status status = CopyToDevice(device_ + begin_, half() + begin_, next_ - begin_, stream);
    if (status.ok()) status = Record(copied_[static_cast<size_t>(half_)], stream);
    FACET_CHECK(status.ok(), "{}", MessageOf(status));
  }
  begin_ = next_;
}

}  // namespace facet::cuda
