#ifndef FACET_CHECKPOINT_PACKED_CACHE_H_
#define FACET_CHECKPOINT_PACKED_CACHE_H_

// A folder of packed files, shared by all processes of a user on a host: whoever needs one first
// makes it, the others wait and then map the same file.

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoint/packed_file.h"

namespace facet {

struct PackedCacheOptions {
  std::string folder;  // made where it is missing
  // What the folder may hold; to keep below it, files that were used longest ago are removed.
  int64_t bytes_max = int64_t{64} << 30;
  // For another process that makes the same file, after it last wrote some of it.
  std::chrono::milliseconds wait_max{120'000};
  // Hears why a file that is there is made again; may be empty.
  std::function<void(std::string_view)> warn;
};

// One thread. Files are complete or absent: they are written under a name of their own, locked (a
// lock ends with its process), and renamed. What is mapped stays whole when its file is replaced or
// removed.
class PackedCache {
 public:
  // Whether a file that is the wanted one is also in order; reads what it likes of it. Not asked
  // about what `build` has just written.
  using Check = std::function<absl::Status(const PackedFile&)>;
  // Writes the data and finishes the file.
  using Build = std::function<absl::Status(const PackedFileWriter&)>;

  explicit PackedCache(PackedCacheOptions options) : options_(std::move(options)) {}

  // The file `name`, as `spec` and `check` want it, built where there is none or another. An error
  // says why there can be no such file: the folder, the disk, the bound, the wait, or what `build`
  // says; the caller then does without. REQUIRES: `name` is a file name.
  absl::StatusOr<PackedFile> Get(std::string_view name, const PackedFileSpec& spec,
                                 const Check& check, const Build& build);

 private:
  absl::StatusOr<PackedFile> Find(const std::string& path, const PackedFileSpec& spec,
                                  const Check& check) const;
  absl::Status Replace(int descriptor, const std::string& partial, const std::string& path,
                       const PackedFileSpec& spec, const Build& build) const;
  // Removes what is left of dead writers, and old files until `bytes` more fit. Keeps `path`.
  absl::Status MakeRoom(const std::string& path, int64_t bytes) const;

  const PackedCacheOptions options_;
};

}  // namespace facet

#endif  // FACET_CHECKPOINT_PACKED_CACHE_H_
