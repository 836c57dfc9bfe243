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

UploadRing::~UploadRing() { Destroy(); }

void UploadRing::Destroy() {
  if (copied_ != nullptr) DestroyEvent(copied_);
  if (host_ != nullptr) FreePinned(host_);
  if (device_ != nullptr) memory_->Release(device_);
  copied_ = nullptr;
  host_ = nullptr;
  device_ = nullptr;
  size_ = begin_ = next_ = end_ = 0;
}

absl::Status UploadRing::Create(std::string_view what, int64_t bytes, DeviceMemory* memory,
                                Stream stream) {
  Destroy();
  memory_ = memory;
  stream_ = stream;
  const int64_t padded = Padded(bytes);
  FACET_ASSIGN_OR_RETURN(copied_, MakeEvent());
  FACET_ASSIGN_OR_RETURN(void* const host, AllocatePinned(std::max<int64_t>(padded, 16)));
  host_ = static_cast<std::byte*>(host);
  FACET_ASSIGN_OR_RETURN(void* const device, memory->Allocate(what, padded));
  device_ = static_cast<std::byte*>(device);
  size_ = padded;
  return absl::OkStatus();
}

void UploadRing::Reserve(int64_t bytes) {
  FACET_CHECK(bytes <= size_, "{} bytes for kernels in a place of {}", bytes, size_);
  FACET_CHECK(next_ == begin_, "what was put before has not been flushed");
  if (end_ + bytes > size_) {
    const absl::Status status = Wait(copied_);
    FACET_CHECK(status.ok(), "{}", MessageOf(status));
    end_ = 0;
  }
  begin_ = next_ = end_;
  end_ = begin_ + bytes;
}

void* UploadRing::Take(int64_t bytes) {
  void* const to = host_ + next_;
  next_ += Padded(bytes);
  FACET_CHECK(next_ <= end_, "more was put than reserved");
  return to;
}

const void* UploadRing::PutBytes(std::span<const std::byte> bytes, void* to) {
  if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
  return OnDevice(to);
}

void UploadRing::Flush() {
  if (next_ > begin_) {
    absl::Status status = CopyToDevice(device_ + begin_, host_ + begin_, next_ - begin_, stream_);
    if (status.ok()) status = Record(copied_, stream_);
    FACET_CHECK(status.ok(), "{}", MessageOf(status));
  }
  begin_ = next_;
}

}  // namespace facet::cuda
