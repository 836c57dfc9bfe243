#ifndef FACET_CHECKPOINT_MAPPED_FILE_H_
#define FACET_CHECKPOINT_MAPPED_FILE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace facet {

// A file, open, and mapped read-only and private. Movable; both live as long as the object.
// The file must not shrink while it is mapped: reading a page that is gone ends the process.
class MappedFile {
 public:
  // NotFound, PermissionDenied or InvalidArgument (not a regular file, empty), naming the path.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::string& path() const { return path_; }
  // When it was last written, as the file system says: nanoseconds since 1970.
  int64_t modified_ns() const { return modified_ns_; }

  // Tells the kernel that `range`, inside bytes(), is not needed soon, so that it no longer counts
  // as this process's resident memory. Reading it again stays correct.
  void Release(std::span<const std::byte> range) const;

  // Copies the bytes from `offset` on without touching the mapping: of what is read once, that is
  // cheaper than the page tables, and no process ends where the file has shrunk. Any thread.
  // Unavailable, naming the path, if it has shrunk or cannot be read. REQUIRES: inside bytes().
  absl::Status Read(int64_t offset, std::span<std::byte> to) const;

 private:
  MappedFile(std::string path, int descriptor, std::span<const std::byte> bytes,
             int64_t modified_ns)
      : path_(std::move(path)), descriptor_(descriptor), bytes_(bytes), modified_ns_(modified_ns) {}

  std::string path_;
  int descriptor_ = -1;
  std::span<const std::byte> bytes_;
  int64_t modified_ns_ = 0;
};

}  // namespace facet

#endif  // FACET_CHECKPOINT_MAPPED_FILE_H_
