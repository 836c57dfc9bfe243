#ifndef FACET_CHECKPOINT_GGUF_H_
#define FACET_CHECKPOINT_GGUF_H_

// GGUF v2/v3: typed metadata and named tensors over mapped bytes. Every length in the file is
// checked against the bytes that are there before it is used, and against fixed limits
// (gguf_reader.cc). Nothing is copied: strings, arrays and tensors are views into the mapping.
// Everything here is immutable once built and may be read from any thread.

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoint/block_formats.h"
#include "checkpoint/mapped_file.h"

namespace facet {

enum class GgufValueType : uint32_t {
  kUint8 = 0, kInt8 = 1, kUint16 = 2, kInt16 = 3, kUint32 = 4, kInt32 = 5, kFloat32 = 6,
  kBool = 7, kString = 8, kArray = 9, kUint64 = 10, kInt64 = 11, kFloat64 = 12,
};

// One metadata value: a scalar, a string or an array, still in the file's bytes.
struct GgufValue {
  GgufValueType type;          // the element type where `is_array`
  bool is_array = false;
  uint64_t count = 1;          // elements
  std::span<const std::byte> bytes;  // the payload (of an array: without its type and count)
};

struct GgufTensor {
  std::string_view name;
  TensorType type;
  // Row length first, as in the file: a matrix of `rows` x `columns` has {columns, rows, 1, 1}.
  std::array<int64_t, 4> shape;
  std::span<const std::byte> data;
  int file = 0;  // which part of a split model

  int64_t elements() const { return shape[0] * shape[1] * shape[2] * shape[3]; }
};

// The parsed header of one file, without the file. Split out so that a fuzzer can reach it.
struct GgufHeader {
  uint32_t version = 0;
  uint64_t header_bytes = 0;  // offset of the tensor data
  // Ordered trees, here and in GgufModel: a file can choose names that collide in a hash table.
  std::map<std::string_view, GgufValue> metadata;
  std::vector<GgufTensor> tensors;
};

// Parses `file`, the whole file's bytes, which the header's views point into. Reads the header's
// bytes only. InvalidArgument names the record that is wrong. Holds for what it returns: tensor
// names are distinct, every `data` lies in the file's tensor data, overlaps no other, starts at a
// multiple of the file's alignment and is exactly its shape's rows of whole blocks long.
absl::StatusOr<GgufHeader> ParseGguf(std::span<const std::byte> file);

// A model on disk: one file, or the parts `x-00001-of-0000N.gguf` found beside the first.
class GgufModel {
 public:
  // As MappedFile::Open and ParseGguf, naming the file. Of a split model, `path` is the first part;
  // the names of the others are made from it, never from what the file says.
  static absl::StatusOr<GgufModel> Open(const std::string& path);

  const std::string& path() const { return files_.front().path(); }
  const std::vector<MappedFile>& files() const { return files_; }  // all parts
  const GgufHeader& header() const { return header_; }  // of the first part; tensors of all parts
  const std::vector<GgufTensor>& tensors() const { return header_.tensors; }
  const GgufTensor* FindTensor(std::string_view name) const;

  // Hash of the whole header (metadata and tensor records) and of the file sizes: two ranks with
  // equal digests have loaded the same model, barring a forger.
  uint64_t digest() const { return digest_; }

  // Metadata. Has() tells absence from error; the getters return NotFound for an absent key and
  // InvalidArgument for a wrong type or range, naming the key. Integers of any width are accepted
  // where they fit. The vectors are the caller's: keep the StatusOr in a variable while looping.
  bool Has(std::string_view key) const;
  absl::StatusOr<std::string_view> GetString(std::string_view key) const;
  absl::StatusOr<int64_t> GetInt(std::string_view key) const;
  absl::StatusOr<double> GetFloat(std::string_view key) const;  // finite; f32, f64 or an integer
  absl::StatusOr<bool> GetBool(std::string_view key) const;
  absl::StatusOr<std::vector<std::string_view>> GetStrings(std::string_view key) const;
  absl::StatusOr<std::vector<double>> GetNumbers(std::string_view key) const;  // array of numbers
  // A scalar, which then holds for every layer, or an array with one entry per layer: integers, or
  // booleans as 0 and 1.
  absl::StatusOr<std::vector<int64_t>> GetPerLayer(std::string_view key, int layers) const;

  // Drops the pages of a tensor's data (or of everything) from this process's resident memory.
  void Release(const GgufTensor& tensor) const;
  void ReleaseAll() const;
  // Copies a tensor's data from `offset` on, past the mapping. Errors as MappedFile::Read()'s.
  // REQUIRES: inside the tensor's data.
  absl::Status Read(const GgufTensor& tensor, int64_t offset, std::span<std::byte> to) const;

 private:
  GgufModel() = default;

  absl::Status AddPart(const std::string& path);
  absl::Status AddOtherParts();
  absl::StatusOr<GgufValue> Find(std::string_view key) const;

  std::vector<MappedFile> files_;
  GgufHeader header_;
  std::map<std::string_view, int> tensor_index_;
  uint64_t digest_ = 0;
};

}  // namespace facet

#endif  // FACET_CHECKPOINT_GGUF_H_
