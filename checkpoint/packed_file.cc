#include "checkpoint/packed_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxh_x86dispatch.h>  // with the widest vectors of the processor: four times as fast

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/status.h"

namespace facet {
namespace {

constexpr char kMagic[] = "facetPK\n";
constexpr uint32_t kVersion = 1;
constexpr size_t kSummedFrom = 16;
constexpr size_t kKeyAt = 40;

#ifndef MADV_POPULATE_READ
constexpr int MADV_POPULATE_READ = 22;  // Linux 5.14; older ones answer EINVAL
#endif

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

size_t TableAt(const PackedFileSpec& spec) { return RoundUp(kKeyAt + spec.key.size(), 8); }

size_t HeadBytes(const PackedFileSpec& spec) {
  return TableAt(spec) + static_cast<size_t>(spec.sections) * sizeof(uint64_t);
}

template <typename T>
T Load(std::span<const std::byte> bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

template <typename T>
void Store(T value, size_t at, std::vector<std::byte>* bytes) {
  std::memcpy(bytes->data() + at, &value, sizeof(value));
}

uint64_t SumOfHead(std::span<const std::byte> head) {
  return XXH3_64bits(head.data() + kSummedFrom, head.size() - kSummedFrom);
}

absl::Status SystemError(std::string_view what) {
  const auto code = errno == ENOSPC || errno == EDQUOT || errno == EFBIG
                        ? absl::StatusCode::kResourceExhausted
                        : absl::StatusCode::kUnavailable;
  return MakeStatus(code, fmt::format("{}: {}", what, std::strerror(errno)));
}

absl::Status WriteAll(int descriptor, const std::byte* data, size_t size, int64_t at) {
  while (size > 0) {
    const ssize_t written = ::pwrite(descriptor, data, size, at);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return SystemError("writing packed weights");
    data += written;
    size -= static_cast<size_t>(written);
    at += written;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::span<const std::byte>> MapShared(int descriptor, int64_t size) {
  void* data = ::mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED) return SystemError("mapping packed weights");
  return std::span(static_cast<const std::byte*>(data), static_cast<size_t>(size));
}

absl::StatusOr<int64_t> SizeOfOwn(int descriptor) {
  struct stat info;
  if (::fstat(descriptor, &info) != 0) return SystemError("looking at packed weights");
  if (!S_ISREG(info.st_mode)) return FailedPrecondition("it is not a regular file");
  if (info.st_uid != ::geteuid() && info.st_uid != 0) {
    return FailedPrecondition("it belongs to another user");
  }
  return int64_t{info.st_size};
}

// Of the pages that `range` touches, or of those wholly inside.
void AdvisePages(std::span<const std::byte> range, bool outward, int advice) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  auto begin = reinterpret_cast<uintptr_t>(range.data());
  auto end = reinterpret_cast<uintptr_t>(range.data() + range.size());
  begin = (outward ? begin : begin + page - 1) / page * page;
  if (!outward) end = end / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

}  // namespace

uint64_t PieceChecksum(int64_t offset, std::span<const std::byte> piece) {
  return XXH3_64bits_withSeed(piece.data(), piece.size(), static_cast<uint64_t>(offset));
}

int64_t PackedDataOffset(const PackedFileSpec& spec) {
  return static_cast<int64_t>(RoundUp(HeadBytes(spec), size_t{kPackedPage}));
}

int64_t PackedFileBytes(const PackedFileSpec& spec) {
  return PackedDataOffset(spec) + spec.data_bytes;
}

absl::StatusOr<std::span<const std::byte>> ParsePackedHead(std::span<const std::byte> head,
                                                           int64_t size,
                                                           const PackedFileSpec& spec) {
  const size_t magic_bytes = sizeof(kMagic) - 1;
  if (head.size() < kKeyAt || std::memcmp(head.data(), kMagic, magic_bytes) != 0) {
    return FailedPrecondition("it is no file of packed weights");
  }
  if (const auto version = Load<uint32_t>(head, 16); version != kVersion) {
    return FailedPrecondition("it has version {}, not {}", version, kVersion);
  }
  const auto key_bytes = size_t{Load<uint32_t>(head, 20)};
  if (key_bytes != spec.key.size() || head.size() < kKeyAt + key_bytes ||
      std::memcmp(head.data() + kKeyAt, spec.key.data(), key_bytes) != 0) {
    return FailedPrecondition("it was packed from another model or for another program");
  }
  if (Load<uint64_t>(head, 24) != static_cast<uint64_t>(spec.sections) ||
      Load<uint64_t>(head, 32) != static_cast<uint64_t>(spec.data_bytes)) {
    return FailedPrecondition("it holds other tensors");
  }
  if (size != PackedFileBytes(spec) || head.size() < HeadBytes(spec)) {
    return FailedPrecondition("it has {} bytes, not {}", size, PackedFileBytes(spec));
  }
  if (SumOfHead(head.first(HeadBytes(spec))) != Load<uint64_t>(head, 8)) {
    return FailedPrecondition("its head is damaged");
  }
  return head.subspan(TableAt(spec), HeadBytes(spec) - TableAt(spec));
}

absl::StatusOr<PackedFile> PackedFile::Open(const std::string& path, const PackedFileSpec& spec) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
  if (descriptor < 0 && errno == ENOENT) return NotFound("{}: there is none", path);
  if (descriptor < 0) return SystemError(path);
  absl::StatusOr<std::span<const std::byte>> mapped = FailedPrecondition("it is empty");
  const absl::StatusOr<int64_t> size = SizeOfOwn(descriptor);
  if (!size.ok()) mapped = size.status();
  if (size.ok() && *size > 0) mapped = MapShared(descriptor, *size);
  ::close(descriptor);  // the mapping keeps the file
  if (!mapped.ok()) return mapped.status();
  PackedFile file;
  file.file_ = *mapped;
  const auto offset = static_cast<size_t>(PackedDataOffset(spec));
  FACET_ASSIGN_OR_RETURN(
      file.checksums_,
      ParsePackedHead(mapped->first(std::min(offset, mapped->size())), *size, spec));
  file.data_ = mapped->subspan(offset);
  return file;
}

PackedFile::PackedFile(PackedFile&& other) noexcept { *this = std::move(other); }

PackedFile& PackedFile::operator=(PackedFile&& other) noexcept {
  std::swap(file_, other.file_);
  std::swap(data_, other.data_);
  std::swap(checksums_, other.checksums_);
  return *this;
}

PackedFile::~PackedFile() {
  if (!file_.empty()) ::munmap(const_cast<std::byte*>(file_.data()), file_.size());
}

uint64_t PackedFile::checksum(int64_t section) const {
  return Load<uint64_t>(checksums_, static_cast<size_t>(section) * sizeof(uint64_t));
}

void PackedFile::Populate(std::span<const std::byte> range) {
  AdvisePages(range, /*outward=*/true, MADV_POPULATE_READ);
}

void PackedFile::KeepPagesSmall(std::span<const std::byte> range) {
  AdvisePages(range, /*outward=*/true, MADV_NOHUGEPAGE);
}

void PackedFile::Release(std::span<const std::byte> range) {
  AdvisePages(range, /*outward=*/false, MADV_DONTNEED);
}

absl::StatusOr<PackedFileWriter> PackedFileWriter::Create(int descriptor,
                                                          const PackedFileSpec& spec) {
  FACET_CHECK(spec.key.size() <= kPackedKeyMax, "a key of {} bytes", spec.key.size());
  const int64_t size = PackedFileBytes(spec);
  // Where the file system can, a full disk is known before anything has been packed. All that will
  // be written has its place then: ext4 would look for one when the file is closed, and write the
  // whole file to the disk while the rank waits.
  const auto allocate = [&](int64_t offset, int64_t bytes) {
    return bytes == 0 || ::fallocate(descriptor, 0, offset, bytes) == 0 || errno == EOPNOTSUPP;
  };
  if (::ftruncate(descriptor, 0) != 0 || ::ftruncate(descriptor, size) != 0 ||
      !allocate(0, static_cast<int64_t>(HeadBytes(spec))) ||
      !allocate(PackedDataOffset(spec), spec.data_bytes)) {
    return SystemError(fmt::format("{} bytes of packed weights", size));
  }
  return PackedFileWriter(descriptor, spec);
}

absl::Status PackedFileWriter::Write(int64_t offset, std::span<const std::byte> bytes) const {
  FACET_CHECK(offset >= 0 && offset + static_cast<int64_t>(bytes.size()) <= spec_.data_bytes);
  return WriteAll(descriptor_, bytes.data(), bytes.size(), PackedDataOffset(spec_) + offset);
}

absl::Status PackedFileWriter::Finish(std::span<const uint64_t> checksums) const {
  FACET_CHECK(static_cast<int64_t>(checksums.size()) == spec_.sections);
  std::vector<std::byte> head(HeadBytes(spec_));
  std::memcpy(head.data(), kMagic, sizeof(kMagic) - 1);
  Store(kVersion, 16, &head);
  Store(static_cast<uint32_t>(spec_.key.size()), 20, &head);
  Store(static_cast<uint64_t>(spec_.sections), 24, &head);
  Store(static_cast<uint64_t>(spec_.data_bytes), 32, &head);
  std::memcpy(head.data() + kKeyAt, spec_.key.data(), spec_.key.size());
  std::ranges::copy(std::as_bytes(checksums), head.data() + TableAt(spec_));
  Store(SumOfHead(head), 8, &head);
  return WriteAll(descriptor_, head.data(), head.size(), 0);
}

LargePages::LargePages(const PackedFileWriter& writer, int64_t offset, int64_t size)
    : writer_(writer),
      first_((offset + kPackedPage - 1) / kPackedPage),
      zeros_(size > 0 ? kPackedPage : 0),
      brought_(static_cast<size_t>(std::max<int64_t>(0, (offset + size) / kPackedPage - first_))) {}

// The page cache keeps what one write brings, aligned, as one piece; later writes go into it. Who
// writes a whole page brings it so.
absl::Status LargePages::Write(int64_t offset, std::span<const std::byte> bytes) {
  const int64_t pages = static_cast<int64_t>(brought_.size());
  const int64_t last = offset + static_cast<int64_t>(bytes.size()) - 1;
  const int64_t end = std::min(last / kPackedPage + 1 - first_, pages);
  absl::Status status;
  for (int64_t i = std::max<int64_t>(0, offset / kPackedPage - first_); i < end; ++i) {
    const int64_t page = (first_ + i) * kPackedPage;
    if (page >= offset && page + kPackedPage <= last + 1) continue;
    std::call_once(brought_[static_cast<size_t>(i)],
                   [&] { status.Update(writer_.Write(page, zeros_)); });
  }
  FACET_RETURN_IF_ERROR(status);
  return writer_.Write(offset, bytes);
}

}  // namespace facet
