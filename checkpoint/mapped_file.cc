#include "checkpoint/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace facet {
namespace {

absl::Status SystemError(int error, const std::string& path) {
  const std::string message = fmt::format("{}: {}", path, std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return MakeStatus(absl::StatusCode::kNotFound, message);
    case EACCES:
    case EPERM:
      return MakeStatus(absl::StatusCode::kPermissionDenied, message);
    case ENAMETOOLONG:
    case ELOOP:
      return MakeStatus(absl::StatusCode::kInvalidArgument, message);
    default:
      return MakeStatus(absl::StatusCode::kUnavailable, message);
  }
}

absl::StatusOr<std::span<const std::byte>> MapDescriptor(int descriptor, const std::string& path,
                                                         int64_t* modified_ns) {
  struct stat info;
  if (::fstat(descriptor, &info) != 0) return SystemError(errno, path);
  *modified_ns = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{}: not a regular file", path);
  if (info.st_size == 0) return InvalidArgument("{}: the file is empty", path);
  const auto size = static_cast<size_t>(info.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (data == MAP_FAILED) return SystemError(errno, path);
  return std::span(static_cast<const std::byte*>(data), size);
}

}  // namespace

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  // Without O_NONBLOCK, opening a pipe would wait for its writer.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return SystemError(errno, path);
  int64_t modified_ns = 0;
  absl::StatusOr<std::span<const std::byte>> bytes = MapDescriptor(descriptor, path, &modified_ns);
  if (!bytes.ok()) {
    ::close(descriptor);
    return bytes.status();
  }
  return MappedFile(path, descriptor, *bytes, modified_ns);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      bytes_(std::exchange(other.bytes_, {})),
      modified_ns_(other.modified_ns_) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  // The temporary leaves with what this object held.
  MappedFile moved(std::move(other));
  std::swap(path_, moved.path_);
  std::swap(descriptor_, moved.descriptor_);
  std::swap(bytes_, moved.bytes_);
  std::swap(modified_ns_, moved.modified_ns_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  if (descriptor_ >= 0) ::close(descriptor_);
}

void MappedFile::Release(std::span<const std::byte> range) const {
  if (range.empty()) return;
  FACET_CHECK(
      range.data() >= bytes_.data() && range.data() + range.size() <= bytes_.data() + bytes_.size(),
      "a range outside {}", path_);
  // Only pages wholly inside: the others also hold bytes somebody may be reading right now. Behind
  // the file's end its last page has no other bytes. The mapping begins with a page.
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = static_cast<size_t>(range.data() - bytes_.data());
  const size_t end = begin + range.size();
  const size_t first = (begin + page - 1) / page * page;
  const size_t last = (end == bytes_.size() ? end + page - 1 : end) / page * page;
  if (first >= last) return;
  ::madvise(const_cast<std::byte*>(bytes_.data()) + first, last - first, MADV_DONTNEED);
}

absl::Status MappedFile::Read(int64_t offset, std::span<std::byte> to) const {
  FACET_CHECK(offset >= 0 &&
                  offset + static_cast<int64_t>(to.size()) <= static_cast<int64_t>(bytes_.size()),
              "a range outside {}", path_);
  while (!to.empty()) {
    const ssize_t count = ::pread(descriptor_, to.data(), to.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return SystemError(errno, path_);
    if (count == 0) return Unavailable("{}: it has shrunk", path_);
    to = to.subspan(static_cast<size_t>(count));
    offset += count;
  }
  return absl::OkStatus();
}

}  // namespace facet
