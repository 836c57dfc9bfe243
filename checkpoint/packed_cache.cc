#include "checkpoint/packed_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/status.h"

namespace facet {
namespace {

using Clock = std::chrono::steady_clock;
namespace fs = std::filesystem;

constexpr std::string_view kSuffix = ".packed";
constexpr std::string_view kPartialSuffix = ".partial";
constexpr std::chrono::milliseconds kPoll{5};

absl::Status SystemError(const std::string& path) {
  return Unavailable("{}: {}", path, std::strerror(errno));
}

// Open and locked, and the file that `path` names; closes itself.
class LockedFile {
 public:
  // Nobody else has it: waits for that while whoever has it writes, and `quiet_max` after that.
  static absl::StatusOr<LockedFile> Lock(const std::string& path,
                                         std::chrono::milliseconds quiet_max) {
    Clock::time_point end = Clock::now() + quiet_max;
    timespec written = {};
    while (true) {
      FACET_ASSIGN_OR_RETURN(LockedFile file, Open(path));
      if (file.TryLock()) {
        if (file.IsAt(path)) return file;
        continue;  // whoever had it has renamed it
      }
      if (errno != EWOULDBLOCK) return SystemError(path);
      if (file.NewlyWritten(&written)) end = Clock::now() + quiet_max;
      if (Clock::now() >= end) {
        return DeadlineExceeded("{}: another process has not finished it", path);
      }
      std::this_thread::sleep_for(kPoll);
    }
  }

  static absl::StatusOr<LockedFile> Open(const std::string& path) {
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (descriptor < 0) return SystemError(path);
    return LockedFile(descriptor);
  }

  LockedFile(LockedFile&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  ~LockedFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  bool TryLock() const { return ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0; }
  bool IsAt(const std::string& path) const {
    struct stat mine, there;
    return ::fstat(descriptor_, &mine) == 0 && ::stat(path.c_str(), &there) == 0 &&
           mine.st_ino == there.st_ino && mine.st_dev == there.st_dev;
  }
  int descriptor() const { return descriptor_; }

 private:
  explicit LockedFile(int descriptor) : descriptor_(descriptor) {}

  // Whether it was last written at another time than `when`; notes the time there.
  bool NewlyWritten(timespec* when) const {
    struct stat info;
    if (::fstat(descriptor_, &info) != 0) return false;
    const timespec before = std::exchange(*when, info.st_mtim);
    return before.tv_sec != when->tv_sec || before.tv_nsec != when->tv_nsec;
  }

  int descriptor_;
};

struct CachedFile {
  std::string path;
  int64_t bytes = 0;
  timespec used = {};
};

bool UsedBefore(const CachedFile& a, const CachedFile& b) {
  if (a.used.tv_sec != b.used.tv_sec) return a.used.tv_sec < b.used.tv_sec;
  if (a.used.tv_nsec != b.used.tv_nsec) return a.used.tv_nsec < b.used.tv_nsec;
  return a.path < b.path;
}

// Leftovers of writers that died go; one that lives keeps its lock. One that has renamed
// its file since it was opened here may have a successor, which writes another of that name.
void RemoveIfDead(const std::string& partial) {
  const absl::StatusOr<LockedFile> file = LockedFile::Open(partial);
  if (file.ok() && file->TryLock() && file->IsAt(partial)) ::unlink(partial.c_str());
}

}  // namespace

absl::StatusOr<PackedFile> PackedCache::Get(std::string_view name, const PackedFileSpec& spec,
                                            const Check& check, const Build& build) {
  const std::string path = fmt::format("{}/{}{}", options_.folder, name, kSuffix);
  absl::StatusOr<PackedFile> file = Find(path, spec, check);
  if (file.ok()) return file;
  std::error_code error;
  fs::create_directories(options_.folder, error);
  if (error) return Unavailable("{}: {}", options_.folder, error.message());
  const std::string partial = path + std::string(kPartialSuffix);
  FACET_ASSIGN_OR_RETURN(const LockedFile lock, LockedFile::Lock(partial, options_.wait_max));
  file = Find(path, spec, check);  // whoever had the lock may have made it
  if (file.ok()) {
    ::unlink(partial.c_str());
    return file;
  }
  if (!absl::IsNotFound(file.status()) && options_.warn) {
    options_.warn(fmt::format("{} is packed anew: {}", path, MessageOf(file.status())));
  }
  const absl::Status replaced = Replace(lock.descriptor(), partial, path, spec, build);
  if (!replaced.ok()) {
    ::unlink(partial.c_str());
    return replaced;
  }
  return PackedFile::Open(path, spec);
}

absl::StatusOr<PackedFile> PackedCache::Find(const std::string& path, const PackedFileSpec& spec,
                                             const Check& check) const {
  FACET_ASSIGN_OR_RETURN(PackedFile file, PackedFile::Open(path, spec));
  FACET_RETURN_IF_ERROR(check(file));
  ::utimensat(AT_FDCWD, path.c_str(), nullptr, 0);  // used now; in vain where it may not be written
  return file;
}

absl::Status PackedCache::Replace(int descriptor, const std::string& partial,
                                  const std::string& path, const PackedFileSpec& spec,
                                  const Build& build) const {
  FACET_RETURN_IF_ERROR(MakeRoom(path, PackedFileBytes(spec)));
  FACET_ASSIGN_OR_RETURN(const PackedFileWriter writer, PackedFileWriter::Create(descriptor, spec));
  FACET_RETURN_IF_ERROR(build(writer));
  if (::rename(partial.c_str(), path.c_str()) != 0) return SystemError(path);
  return absl::OkStatus();
}

absl::Status PackedCache::MakeRoom(const std::string& path, int64_t bytes) const {
  if (bytes > options_.bytes_max) {
    return ResourceExhausted("{} bytes of packed weights: the folder may hold {}", bytes,
                             options_.bytes_max);
  }
  std::vector<CachedFile> files;
  std::error_code error;
  for (fs::directory_iterator it(options_.folder, error), end; !error && it != end;
       it.increment(error)) {
    const std::string other = it->path().string();
    if (other.starts_with(path)) continue;  // what is being made, and what it replaces
    if (other.ends_with(std::string(kSuffix) + std::string(kPartialSuffix))) RemoveIfDead(other);
    struct stat info;
    if (!other.ends_with(kSuffix) || ::lstat(other.c_str(), &info) != 0) continue;
    files.push_back({other, int64_t{info.st_size}, info.st_mtim});
    bytes += files.back().bytes;
  }
  std::sort(files.begin(), files.end(), UsedBefore);
  for (const CachedFile& file : files) {
    if (bytes <= options_.bytes_max) break;
    if (::unlink(file.path.c_str()) == 0) bytes -= file.bytes;
  }
  return absl::OkStatus();
}

}  // namespace facet
