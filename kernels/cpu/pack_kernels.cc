// Packing of integer weights and of bfloat16: as many rows at a time as a vector has columns.

#include "kernels/cpu/pack_kernels.h"

#include "kernels/cpu/block_tile.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_tiles.h"

namespace facet {
namespace FACET_ISA {
namespace {

constexpr int kBlock = 32;

// Where a block of a panel goes.
struct BlockPlace {
  uint8_t* header;
  uint8_t* scales;
  uint8_t* weights;
  uint8_t* low;
};

template <PackedFormat kFormat>
FACET_INLINE BlockPlace PlaceOf(const PackArgs& args, int64_t index) {
  constexpr PackedLayout kLayout = LayoutOf(kFormat);
  BlockPlace place{};
  if constexpr (IsSplit(kFormat)) {
    constexpr SplitLayout kSplit = SplitLayoutOf(kFormat);
    place.header = args.panel + kSplit.header_at(index);
    place.scales = args.panel + kSplit.scales_at(index);
    place.low = args.low + index * kSplit.low_bytes();
  } else {
    place.header = args.panel + index / kLayout.super_blocks * kLayout.super_bytes();
    place.scales =
        place.header + kLayout.header_bytes + index % kLayout.super_blocks * kLayout.block_bytes();
  }
  place.weights = place.scales + kLayout.scale_bytes;
  return place;
}

// To 32-bit lanes.
FACET_INLINE int LaneAt(int column) {
  return 64 * (column / kHalfPanel) + 4 * (column % kHalfPanel);
}

// `kBits` of each byte of `a` from `kFrom` on, moved to `kTo`.
template <int kBits, int kFrom, int kTo>
FACET_INLINE Wide MoveBits(Wide a) {
  return Left16<kTo>(Bits<kFrom>(a, (1 << kBits) - 1));
}

// The low four bits of each weight, groups in pairs.
FACET_INLINE void WriteNibbles(const BlockTile& tile, uint8_t* out) {
  FACET_UNROLL
  for (int pair = 0; pair < 4; ++pair) {
    StoreWide(out + 128 * pair, MoveBits<4, 0, 0>(tile.groups[2 * pair]) |
                                    MoveBits<4, 0, 4>(tile.groups[2 * pair + 1]));
  }
}

// The high four bits of each weight of a split format: of even groups in the high nibbles.
template <int kFrom>
FACET_INLINE void WriteHigh(const BlockTile& tile, uint8_t* out) {
  FACET_UNROLL
  for (int pair = 0; pair < 4; ++pair) {
    StoreWide(out + 128 * pair, MoveBits<4, kFrom, 4>(tile.groups[2 * pair]) |
                                    MoveBits<4, kFrom, 0>(tile.groups[2 * pair + 1]));
  }
}

// The low four: even groups in the low nibbles, odd ones in the high nibbles of the lane's byte
// before (packed_format.h).
FACET_INLINE void WriteLowNibbles(const BlockTile& tile, uint8_t* out) {
  FACET_UNROLL
  for (int pair = 0; pair < 4; ++pair) {
    StoreWide(out + 128 * pair, MoveBits<4, 0, 0>(tile.groups[2 * pair]) |
                                    MoveBits<4, 0, 4>(TurnRight8(tile.groups[2 * pair + 1])));
  }
}

// A bit of each weight from `kFrom` on, of all groups.
template <int kFrom>
FACET_INLINE void WriteSingles(const BlockTile& tile, uint8_t* out) {
  const Wide* groups = tile.groups;
  StoreWide(out, (MoveBits<1, kFrom, 0>(groups[0]) | MoveBits<1, kFrom, 1>(groups[1])) |
                     (MoveBits<1, kFrom, 2>(groups[2]) | MoveBits<1, kFrom, 3>(groups[3])) |
                     (MoveBits<1, kFrom, 4>(groups[4]) | MoveBits<1, kFrom, 5>(groups[5])) |
                     (MoveBits<1, kFrom, 6>(groups[6]) | MoveBits<1, kFrom, 7>(groups[7])));
}

// Two bits of each weight from `kFrom` on, of four groups and then of the other four.
template <int kFrom>
FACET_INLINE void WritePairs(const BlockTile& tile, uint8_t* out) {
  FACET_UNROLL
  for (int part = 0; part < 2; ++part) {
    const Wide* groups = tile.groups + 4 * part;
    StoreWide(out + 128 * part,
              (MoveBits<2, kFrom, 0>(groups[0]) | MoveBits<2, kFrom, 2>(groups[1])) |
                  (MoveBits<2, kFrom, 4>(groups[2]) | MoveBits<2, kFrom, 6>(groups[3])));
  }
}

template <PackedFormat kFormat>
FACET_INLINE void WriteWeights(const BlockTile& tile, int lane, const BlockPlace& place) {
  constexpr PackedLayout kLayout = LayoutOf(kFormat);
  uint8_t* weights = place.weights + lane;
  if constexpr (IsSplit(kFormat)) {
    constexpr int kLowBits = SplitLayoutOf(kFormat).low_bits;
    WriteHigh<kLowBits>(tile, weights);
    if constexpr (kLowBits == 4) {
      WriteLowNibbles(tile, place.low + lane);
    } else {
      WritePairs<0>(tile, place.low + lane);
    }
  } else if constexpr (kLayout.bits == 8) {
    FACET_UNROLL
    for (int g = 0; g < 8; ++g) StoreWide(weights + 128 * g, tile.groups[g]);
  } else {
    WriteNibbles(tile, weights);
    if constexpr (kLayout.bits == 5) WriteSingles<4>(tile, weights + kLayout.weight_bytes);
    if constexpr (kLayout.bits == 6) WritePairs<4>(tile, weights + kLayout.weight_bytes);
  }
}

// Of each row, what the low bits leave of the weights under one scale, as a squared norm.
template <PackedFormat kFormat>
FACET_INLINE void NoteResiduals(const BlockTile& tile, int32_t* residuals) {
  constexpr SplitLayout kLayout = SplitLayoutOf(kFormat);
  constexpr int kGroups = 8 / kLayout.whole.scales_per_block;  // under one scale
  const Wide center = SetBytes(kLayout.center());
  Wide largest = LoadWide(residuals);
  FACET_UNROLL
  for (int begin = 0; begin < 8; begin += kGroups) {
    Wide sum = SetBytes(0);
    FACET_UNROLL
    for (int g = begin; g < begin + kGroups; ++g) {
      const Wide low = Bits<0>(tile.groups[g], (1 << kLayout.low_bits) - 1);
      sum = Add32(sum, SumSquares(Sub8(low, center)));
    }
    largest = Max32(largest, sum);
  }
  StoreWide(residuals, largest);
}

template <typename T>
FACET_INLINE void Put(uint8_t* to, T value) {
  __builtin_memcpy(to, &value, sizeof(value));
}

// Half-precision numbers at `offset` of every row's block.
FACET_INLINE void WriteHalves(const TileRows& rows, int offset, uint8_t* to) {
  FACET_UNROLL
  for (int i = 0; i < kLanes; ++i) {
    Put(to + 8 * i, ReadHalves(rows.row + 4 * i, offset) & rows.halves[i]);
  }
}

template <PackedFormat kFormat, int kGroup>
FACET_INLINE void PackBlock(const TileRows& rows, int column, const BlockPlace& place,
                            PackArgs* args) {
  const BlockTile tile = ReadTile<kFormat, kGroup>(rows);
  WriteWeights<kFormat>(tile, LaneAt(column), place);
  if constexpr (IsSplit(kFormat)) NoteResiduals<kFormat>(tile, args->residuals + column);
}

// A block with a scale, and perhaps a minimum, of its own.
template <PackedFormat kFormat>
FACET_INLINE void PackSingle(const TileRows& rows, int column, int64_t index, PackArgs* args) {
  const BlockPlace place = PlaceOf<kFormat>(*args, index);
  WriteHalves(rows, 0, place.scales + 2 * column);
  if constexpr (LayoutOf(kFormat).has_min) WriteHalves(rows, 2, place.scales + 64 + 2 * column);
  PackBlock<kFormat, 0>(rows, column, place, args);
}

// The groups of a super-block from `kGroup` on.
template <PackedFormat kFormat, int kGroup>
FACET_INLINE void PackGroups(const TileRows& rows, int column, int64_t index,
                             const SuperScales (&scales)[kLanes], PackArgs* args) {
  if constexpr (kGroup < LayoutOf(kFormat).super_blocks) {
    const BlockPlace place = PlaceOf<kFormat>(*args, index + kGroup);
    FACET_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      uint8_t* to = place.scales + column + 4 * i;
      Put(to, scales[i].first[kGroup] & rows.bytes[i]);
      Put(to + 32, scales[i].second[kGroup] & rows.bytes[i]);
    }
    PackBlock<kFormat, kGroup>(rows, column, place, args);
    PackGroups<kFormat, kGroup + 1>(rows, column, index, scales, args);
  }
}

template <PackedFormat kFormat>
FACET_INLINE void PackSuper(const TileRows& rows, int column, int64_t index, PackArgs* args) {
  uint8_t* header = PlaceOf<kFormat>(*args, index).header + 2 * column;
  if constexpr (LayoutOf(kFormat).has_min) {
    WriteHalves(rows, 0, header);
    WriteHalves(rows, 2, header + 64);
  } else {
    WriteHalves(rows, 208, header);  // Q6_K keeps it at the end
  }
  SuperScales scales[kLanes];
  FACET_UNROLL
  for (int i = 0; i < kLanes; ++i) scales[i] = ReadSuperScales<kFormat>(rows.row + 4 * i);
  PackGroups<kFormat, 0>(rows, column, index, scales, args);
}

// The rows of a tile whose first one is the panel's column `column`, `offset` bytes on.
FACET_INLINE TileRows RowsOf(const PackArgs& args, int column, int64_t offset) {
  TileRows rows;
  FACET_UNROLL
  for (int i = 0; i < kTileColumns; ++i) rows.row[i] = args.rows[column + i] + offset;
  const int present = args.present - column;
  const int some = present < 0 ? 0 : present > kTileColumns ? kTileColumns : present;
  rows.present = First32(some);
  FACET_UNROLL
  for (int i = 0; i < kLanes; ++i) {
    const int here = some - 4 * i;
    const int absent = here <= 0 ? 4 : here >= 4 ? 0 : 4 - here;
    rows.halves[i] = absent == 4 ? 0 : ~uint64_t{0} >> (16 * absent);
    rows.bytes[i] = absent == 4 ? 0 : ~uint32_t{0} >> (8 * absent);
  }
  return rows;
}

template <PackedFormat kFormat>
void PackIntegers(PackArgs* args) {
  constexpr int kGroups = LayoutOf(kFormat).super_blocks;  // of 32 in a block of the file
  for (int column = 0; column < kPanelColumns; column += kTileColumns) {
    const int64_t first = args->begin / kBlock;
    TileRows rows = RowsOf(*args, column, first / kGroups * args->block_bytes);
    for (int64_t index = first; index < args->end / kBlock; index += kGroups) {
      if constexpr (kGroups == 1) {
        PackSingle<kFormat>(rows, column, index, args);
      } else {
        PackSuper<kFormat>(rows, column, index, args);
      }
      FACET_UNROLL
      for (int i = 0; i < kTileColumns; ++i) rows.row[i] += args->block_bytes;
    }
  }
}

// BF16: as it is, the two of a pair of K side by side, zeros behind the last.
void PackPairs(PackArgs* args) {
  constexpr int kStep = 8;  // of K: 16 bytes
  for (int column = 0; column < kPanelColumns; column += kTileColumns) {
    const TileRows rows = RowsOf(*args, column, 0);
    int64_t k = args->begin;
    for (; k + kStep <= args->end; k += kStep) {
      Wide row[4], pairs[4];
      FACET_UNROLL
      for (int i = 0; i < 4; ++i) row[i] = LoadLanes(rows.lanes(i), 2 * k);
      Transpose4(row, pairs);
      uint8_t* out = args->panel + (k / 2 * kPanelColumns + column) * 4;
      FACET_UNROLL
      for (int i = 0; i < 4; ++i) StoreWide(out + 4 * kPanelColumns * i, pairs[i] & rows.present);
    }
    for (; k < args->end; ++k) {
      uint8_t* out = args->panel + (k / 2 * kPanelColumns + column) * 4 + 2 * (k % 2);
      for (int i = 0; i < kTileColumns && column + i < args->present; ++i) {
        __builtin_memcpy(out + 4 * i, rows.row[i] + 2 * k, sizeof(uint16_t));
      }
    }
  }
}

}  // namespace

PackColumns PackerOf(PackedFormat format) {
  switch (format) {
    case PackedFormat::kQ8:
      return PackIntegers<PackedFormat::kQ8>;
    case PackedFormat::kQ4:
      return PackIntegers<PackedFormat::kQ4>;
    case PackedFormat::kQ4Min:
      return PackIntegers<PackedFormat::kQ4Min>;
    case PackedFormat::kQ5:
      return PackIntegers<PackedFormat::kQ5>;
    case PackedFormat::kQ5Min:
      return PackIntegers<PackedFormat::kQ5Min>;
    case PackedFormat::kQ4K:
      return PackIntegers<PackedFormat::kQ4K>;
    case PackedFormat::kQ5K:
      return PackIntegers<PackedFormat::kQ5K>;
    case PackedFormat::kQ6K:
      return PackIntegers<PackedFormat::kQ6K>;
    case PackedFormat::kQ8Split:
      return PackIntegers<PackedFormat::kQ8Split>;
    case PackedFormat::kQ6KSplit:
      return PackIntegers<PackedFormat::kQ6KSplit>;
    case PackedFormat::kBF16:
      return PackPairs;
    default:
      return nullptr;
  }
}

}  // namespace FACET_ISA
}  // namespace facet
