#ifndef FACET_CHECKPOINT_PACKED_FILE_H_
#define FACET_CHECKPOINT_PACKED_FILE_H_

// A file of packed weights: bytes that can be made again at any time, with a key that says what
// they were made from and a checksum per section. It holds no offset and no name: who reads it
// computes where everything lies from the model and compares the key, so that nothing in the file
// decides what is read.
//
//   0   "facetPK\n"
//   8   u64 checksum of the bytes from 16 to the end of the table
//   16  u32 version, u32 bytes of the key
//   24  u64 sections
//   32  u64 bytes of data
//   40  the key, zeros up to a multiple of 8, u64 checksum of each section
//   ... a hole up to a multiple of 2 MiB, and the data
//
// Numbers are little-endian. Checksums are XXH3 of 64 bits (https://xxhash.com); a section's is the
// sum over its pieces, each seeded with its offset in the data.

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace facet {

// What a file must say to be the one that is wanted.
struct PackedFileSpec {
  std::string key;  // at most kPackedKeyMax bytes
  int64_t sections = 0;
  int64_t data_bytes = 0;
};
inline constexpr size_t kPackedKeyMax = 64 << 10;
// The data begin at a multiple of this in the file: the processor's large pages.
inline constexpr int64_t kPackedPage = 2 << 20;

// Of a piece of a section that lies at `offset` in the data.
uint64_t PieceChecksum(int64_t offset, std::span<const std::byte> piece);

// Where the data of such a file begins, and how long the file is.
int64_t PackedDataOffset(const PackedFileSpec& spec);
int64_t PackedFileBytes(const PackedFileSpec& spec);

// The table of section checksums of a file of `size` bytes that begins with `head`, which has
// PackedDataOffset() bytes or all there are. FailedPrecondition says in a few words why it is not
// the wanted file.
absl::StatusOr<std::span<const std::byte>> ParsePackedHead(std::span<const std::byte> head,
                                                           int64_t size,
                                                           const PackedFileSpec& spec);

// A packed file mapped read-only and shared: the page cache holds the one copy for all processes.
// Movable; the mapping lives as long as the object, also when the file has been replaced or
// removed. The file must not shrink while it is mapped.
class PackedFile {
 public:
  // NotFound if there is none; FailedPrecondition if it is another file than wanted or belongs to
  // another user; else what the system says.
  static absl::StatusOr<PackedFile> Open(const std::string& path, const PackedFileSpec& spec);

  PackedFile() = default;  // maps nothing
  PackedFile(PackedFile&& other) noexcept;
  PackedFile& operator=(PackedFile&& other) noexcept;
  ~PackedFile();

  explicit operator bool() const { return !file_.empty(); }
  // Aligned to 2 MiB in the file, to a page in memory.
  std::span<const std::byte> data() const { return data_; }
  uint64_t checksum(int64_t section) const;

  // Makes pages of `range`, inside data(), part of this process's memory, so that no step waits for
  // them. A hint.
  static void Populate(std::span<const std::byte> range);
  // Maps no large pages in `range`: they would bring in neighbours that are other ranks'.
  static void KeepPagesSmall(std::span<const std::byte> range);
  // The opposite of Populate(), of pages wholly inside: they count as resident no longer, and are
  // read again where somebody looks at them.
  static void Release(std::span<const std::byte> range);

 private:
  std::span<const std::byte> file_;
  std::span<const std::byte> data_;
  std::span<const std::byte> checksums_;
};

// Writes a packed file to a descriptor that is open for writing. The data first, from any threads;
// then, once, the head, which makes it a packed file.
class PackedFileWriter {
 public:
  // Borrows the descriptor and empties the file. ResourceExhausted where the disk cannot hold it.
  static absl::StatusOr<PackedFileWriter> Create(int descriptor, const PackedFileSpec& spec);

  // Thread-safe. REQUIRES: inside the data.
  absl::Status Write(int64_t offset, std::span<const std::byte> bytes) const;
  absl::Status Finish(std::span<const uint64_t> checksums) const;

 private:
  PackedFileWriter(int descriptor, const PackedFileSpec& spec)
      : descriptor_(descriptor), spec_(spec) {}

  int descriptor_;
  PackedFileSpec spec_;
};

// Lets a range of the data lie in pages as large as the processor's largest, for streams through
// it: each is brought whole, by the write that fills it, or with zeros by the first of several, and
// so is still in a cache when the bytes come.
class LargePages {
 public:
  // Borrows the writer. A size of 0: none.
  LargePages(const PackedFileWriter& writer, int64_t offset, int64_t size);

  // PackedFileWriter::Write(). All writes into the range come this way, each byte once.
  // Thread-safe.
  absl::Status Write(int64_t offset, std::span<const std::byte> bytes);

 private:
  const PackedFileWriter& writer_;
  const int64_t first_;  // page
  const std::vector<std::byte> zeros_;
  std::vector<std::once_flag> brought_;
};

}  // namespace facet

#endif  // FACET_CHECKPOINT_PACKED_FILE_H_
