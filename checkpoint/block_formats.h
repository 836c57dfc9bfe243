#ifndef FACET_CHECKPOINT_BLOCK_FORMATS_H_
#define FACET_CHECKPOINT_BLOCK_FORMATS_H_

// The element formats a GGUF tensor can have. Layouts and closed forms: ggml's block formats, as
// described by the closed forms in block_formats.cc.

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace facet {

// Values are the ids in the file.
enum class TensorType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kIQ4_XS = 23,
  kBF16 = 30,
};

struct BlockFormat {
  std::string_view name;  // "Q4_K"
  int elements;           // per block
  int bytes;              // per block
};

// The format of `type`, or nullptr where Facet does not read it (removed and unknown ids too).
const BlockFormat* FindBlockFormat(TensorType type);

// The format of a type that is known to be supported. REQUIRES: FindBlockFormat(type) != nullptr.
const BlockFormat& FormatOf(TensorType type);

// Bytes of a row of `elements`. REQUIRES: a whole number of blocks.
int64_t RowBytes(TensorType type, int64_t elements);

// Writes `elements` floats, a whole number of blocks, read from `source` (any alignment).
void DequantizeRow(TensorType type, const std::byte* source, int64_t elements, float* out);

}  // namespace facet

#endif  // FACET_CHECKPOINT_BLOCK_FORMATS_H_
