#ifndef FACET_KERNELS_CPU_PACKED_FORMAT_H_
#define FACET_KERNELS_CPU_PACKED_FORMAT_H_

// How matrices lie in memory for the product kernels. Plain data, also compiled into the files
// that are built for AVX-512.
//
// A matrix is a sequence of panels of 32 output columns (rows of the matrix; the last panel is
// filled up with zeros), K ascending inside a panel, so that a product reads one stream.
//
// Integer weights: per 32 of K one block, K types in super-blocks of eight with a common header:
//   header    f16 d[32], f16 dmin[32] (Q4_K, Q5_K) or f16 d[32] (Q6_K)
//   scales    f16 d[32]; f16 d[32], m[32]; u8 scale[32], min[32]; or s8 scale[2][32] (Q6_K: of the
//             first and the last 16 of K)
//   weights   unsigned, eight groups of four K values; a vector is 16 columns x one group, the
//             four K values of a column in one 32-bit lane, `half` 0 and 1 for the two vectors of
//             a group. 8 bits: [group][half]; 4 bits: [pair of groups][half], the even group in
//             the low nibbles
//   high bits the fifth bit: [half], bit g for group g; the fifth and sixth:
//             [groups 0-3, 4-7][half], bits 2i and 2i + 1 for group i of the four
// Float weights: per K 32 values of the type; of bfloat16 per two of K 32 pairs, filled up with
// zeros.
//
// A product of many rows first unpacks a panel of less than 8 bits, and as it works on its first
// tile one of a split format (below), because tile after tile reads it: scales and minima as
// floats, [32] or of Q6_K [2][32], then 8-bit weights with an offset of 128, or of 0 where there
// are minima. No matrix is kept in these formats.
//
// Split formats hold the output layer, of which most searches read only the high four bits of each
// weight (kernels/README.md, "Screening"). The low bits of all panels follow behind all panels: a
// first pass that reads a panel and leaves out the next bytes reaches 60 % of the memory's speed.
//   residuals u8[32], 32 bytes of padding: by column, four times the largest norm of the low bits
//             under one scale, rounded up
//   narrow    as above, the weights being the high four bits, the even group in the high nibbles
//   low       elsewhere, per block the low bits, vectors of groups together (`granules`): pairs of
//             bits as the fifth and sixth bits; or nibbles, the even group's in the low ones,
//             the odd group's in the high ones of the byte before in the 32-bit lane (of byte 0 in
//             byte 3). Where a byte takes the high nibble of the one and the low nibble of the
//             other plane, that is a weight of the even group, and the opposite, turned by four
//             bits within the lane, one of the odd group: three instructions for two vectors of
//             weights.

#include <cstdint>

namespace facet {

inline constexpr int kPanelColumns = 32;
inline constexpr int kHalfPanel = 16;

enum class PackedFormat : int {
  kQ8,
  kQ4,
  kQ4Min,
  kQ5,
  kQ5Min,
  kQ4K,
  kQ5K,
  kQ6K,
  kF32,
  kF16,
  kBF16,
  kQ8Split,
  kQ6KSplit,
  kUnpacked,        // from Q4, Q5, Q8Split
  kUnpackedMin,     // from Q4Min, Q5Min, Q4K, Q5K
  kUnpackedHalves,  // from Q6K, Q6KSplit
};
inline constexpr int kPackedFormats = 16;

constexpr bool IsSplit(PackedFormat format) {
  return format == PackedFormat::kQ8Split || format == PackedFormat::kQ6KSplit;
}

struct PackedLayout {
  int bits = 0;    // of a weight
  int offset = 0;  // weight = stored - offset
  bool has_min = false;
  int scales_per_block = 1;
  int super_blocks = 1;  // blocks that share a header
  int header_bytes = 0;
  int scale_bytes = 0;  // of a block
  int weight_bytes = 0;
  int high_bytes = 0;
  bool is_float = false;  // then only weight_bytes, per K

  constexpr int block_bytes() const { return scale_bytes + weight_bytes + high_bytes; }
  constexpr int super_bytes() const { return header_bytes + super_blocks * block_bytes(); }
  // Of `blocks` blocks from the start of a panel.
  constexpr int64_t bytes(int64_t blocks) const {
    return (blocks + super_blocks - 1) / super_blocks * header_bytes + blocks * block_bytes();
  }
};

constexpr PackedLayout LayoutOf(PackedFormat format) {
  switch (format) {
    case PackedFormat::kQ8:
    case PackedFormat::kQ8Split:
      return {.bits = 8, .offset = 128, .scale_bytes = 64, .weight_bytes = 1024};
    case PackedFormat::kQ4:
      return {.bits = 4, .offset = 8, .scale_bytes = 64, .weight_bytes = 512};
    case PackedFormat::kQ4Min:
      return {.bits = 4, .has_min = true, .scale_bytes = 128, .weight_bytes = 512};
    case PackedFormat::kQ5:
      return {.bits = 5, .offset = 16, .scale_bytes = 64, .weight_bytes = 512, .high_bytes = 128};
    case PackedFormat::kQ5Min:
      return {
          .bits = 5, .has_min = true, .scale_bytes = 128, .weight_bytes = 512, .high_bytes = 128};
    case PackedFormat::kQ4K:
      return {.bits = 4,
              .has_min = true,
              .super_blocks = 8,
              .header_bytes = 128,
              .scale_bytes = 64,
              .weight_bytes = 512};
    case PackedFormat::kQ5K:
      return {.bits = 5,
              .has_min = true,
              .super_blocks = 8,
              .header_bytes = 128,
              .scale_bytes = 64,
              .weight_bytes = 512,
              .high_bytes = 128};
    case PackedFormat::kQ6K:
    case PackedFormat::kQ6KSplit:
      return {.bits = 6,
              .offset = 32,
              .scales_per_block = 2,
              .super_blocks = 8,
              .header_bytes = 64,
              .scale_bytes = 64,
              .weight_bytes = 512,
              .high_bytes = 256};
    case PackedFormat::kF32:
      return {.bits = 32, .weight_bytes = 128, .is_float = true};
    case PackedFormat::kF16:
    case PackedFormat::kBF16:
      return {.bits = 16, .weight_bytes = 64, .is_float = true};
    case PackedFormat::kUnpacked:
      return {.bits = 8, .offset = 128, .scale_bytes = 128, .weight_bytes = 1024};
    case PackedFormat::kUnpackedMin:
      return {.bits = 8, .has_min = true, .scale_bytes = 256, .weight_bytes = 1024};
    case PackedFormat::kUnpackedHalves:
      return {.bits = 8,
              .offset = 128,
              .scales_per_block = 2,
              .scale_bytes = 256,
              .weight_bytes = 1024};
  }
  return {};
}

constexpr bool IsUnpacked(PackedFormat format) { return format >= PackedFormat::kUnpacked; }

// What a panel is unpacked to; itself where unpacking gains nothing.
constexpr PackedFormat UnpackedFormat(PackedFormat format) {
  const PackedLayout layout = LayoutOf(format);
  if (layout.bits >= 8 && !IsSplit(format)) return format;
  if (layout.has_min) return PackedFormat::kUnpackedMin;
  return layout.scales_per_block == 2 ? PackedFormat::kUnpackedHalves : PackedFormat::kUnpacked;
}

// Of a split format; LayoutOf() tells bits, offset and scales.
struct SplitLayout {
  static constexpr int kResidualBytes = 64;  // before the narrow part
  static constexpr int kHighBytes = 512;     // of a block
  static constexpr int kGranuleBytes = 128;  // low bits of a granule, for all columns

  PackedLayout whole;
  int low_bits = 0;
  int granules = 0;  // per block: the low bits can be read in this many parts

  constexpr int low_bytes() const { return granules * kGranuleBytes; }  // of a block
  // What a low value is taken for where it is not read.
  constexpr int center() const { return 1 << (low_bits - 1); }
  constexpr int block_bytes() const { return whole.scale_bytes + kHighBytes; }
  constexpr int super_bytes() const {
    return whole.header_bytes + whole.super_blocks * block_bytes();
  }
  // Of a panel of `blocks` blocks without its low bits.
  constexpr int64_t narrow_bytes(int64_t blocks) const {
    return kResidualBytes +
           (blocks + whole.super_blocks - 1) / whole.super_blocks * whole.header_bytes +
           blocks * block_bytes();
  }
  // From the start of a panel to the header of block `index`'s super-block, and to its scales.
  constexpr int64_t header_at(int64_t index) const {
    return kResidualBytes + index / whole.super_blocks * super_bytes();
  }
  constexpr int64_t scales_at(int64_t index) const {
    return header_at(index) + whole.header_bytes + index % whole.super_blocks * block_bytes();
  }
};

constexpr SplitLayout SplitLayoutOf(PackedFormat format) {
  if (format == PackedFormat::kQ8Split) {
    return {.whole = LayoutOf(format), .low_bits = 4, .granules = 4};
  }
  return {.whole = LayoutOf(format), .low_bits = 2, .granules = 2};
}

// A residual norm of 1 is kept as this many units; no row has fewer than the floor.
inline constexpr int kResidualUnits = 4;
inline constexpr int kResidualFloor = 16;

}  // namespace facet

#endif  // FACET_KERNELS_CPU_PACKED_FORMAT_H_
