#ifndef FACET_KERNELS_CPU_BLOCK_TILE_H_
#define FACET_KERNELS_CPU_BLOCK_TILE_H_

// Blocks of a file, of as many rows as a tile has, turned so that they lie as in a panel
// (packed_format.h). Compiled once per instruction set. What a packed format is made from is one
// type of the file, so the format names it here.

#include "kernels/cpu/packed_format.h"
#include "kernels/cpu/simd_tiles.h"

namespace facet {
namespace FACET_ISA {

// Some rows of the file, from where a block of each begins.
struct TileRows {
  const uint8_t* row[kTileColumns];
  Wide present;             // 32 bits of each row: all ones, or zeros where there is no row
  uint64_t halves[kLanes];  // of four rows: 16 bits of each
  uint32_t bytes[kLanes];   // and 8 bits

  [[gnu::always_inline]] LaneRows lanes(int first) const {
    LaneRows rows;
    FACET_UNROLL
    for (int i = 0; i < kLanes; ++i) rows.at[i] = row[4 * i + first];
    return rows;
  }
};

// Bits of each byte: those of `mask`, once they are moved down.
template <int kShift>
FACET_INLINE Wide Bits(Wide a, int mask) {
  return Right16<kShift>(a) & SetBytes(mask);
}

// The stored (unsigned) weights of a block, in the order of K.
struct BlockWeights {
  Wide first, last;
};

FACET_INLINE BlockWeights ReadNibbles(const LaneRows& rows, int offset) {
  const Wide both = LoadLanes(rows, offset);
  return {Bits<0>(both, 15), Bits<4>(both, 15)};
}

// The fifth bits stand in 32 bits, in the order of K.
FACET_INLINE BlockWeights ReadFiveBits(const LaneRows& rows, int nibbles, int fifth) {
  const Wide bits = LoadQuads(rows, fifth);
  const Wide bit = Repeat(_mm_set1_epi64x(static_cast<int64_t>(0x8040201008040201)));
  const Wide first = Repeat(_mm_set_epi64x(0x0101010101010101, 0));
  const Wide last = Repeat(_mm_set_epi64x(0x0303030303030303, 0x0202020202020202));
  BlockWeights weights = ReadNibbles(rows, nibbles);
  weights.first |= WhereSet(Shuffle(bits, first), bit, 16);
  weights.last |= WhereSet(Shuffle(bits, last), bit, 16);
  return weights;
}

// Weights from 32 bytes of nibbles and from bits that stand `mask` wide in 32 other bytes.
template <int kShift, int kHighShift>
FACET_INLINE BlockWeights Join(const LaneRows& rows, int nibbles, int high, int mask) {
  const auto join = [&](int at) __attribute__((always_inline)) {
    const Wide top = Bits<kHighShift>(LoadLanes(rows, high + at), mask);
    return Bits<kShift>(LoadLanes(rows, nibbles + at), 15) | Left16<4>(top);
  };
  return {join(0), join(16)};
}

// Group `kGroup` of 32 of a block in the file.
template <PackedFormat kFormat, int kGroup>
FACET_INLINE BlockWeights ReadWeights(const LaneRows& rows) {
  if constexpr (kFormat == PackedFormat::kQ4) return ReadNibbles(rows, 2);
  if constexpr (kFormat == PackedFormat::kQ4Min) return ReadNibbles(rows, 4);
  if constexpr (kFormat == PackedFormat::kQ5) return ReadFiveBits(rows, 6, 2);
  if constexpr (kFormat == PackedFormat::kQ5Min) return ReadFiveBits(rows, 8, 4);
  if constexpr (kFormat == PackedFormat::kQ4K) {
    constexpr int kAt = 16 + 32 * (kGroup / 2);
    constexpr int kShift = 4 * (kGroup % 2);
    return {Bits<kShift>(LoadLanes(rows, kAt), 15), Bits<kShift>(LoadLanes(rows, kAt + 16), 15)};
  }
  if constexpr (kFormat == PackedFormat::kQ5K) {
    return Join<4 * (kGroup % 2), kGroup>(rows, 48 + 32 * (kGroup / 2), 16, 1);
  }
  if constexpr (kFormat == PackedFormat::kQ6K || kFormat == PackedFormat::kQ6KSplit) {
    constexpr int kShift = kGroup % 4 < 2 ? 0 : 4;
    constexpr int kHighShift = 2 * (kGroup % 4);
    return Join<kShift, kHighShift>(rows, 64 * (kGroup / 4) + 32 * (kGroup % 2),
                                    128 + 32 * (kGroup / 4), 3);
  }
  if constexpr (kFormat == PackedFormat::kQ8 || kFormat == PackedFormat::kQ8Split) {  // q + 128
    const Wide sign = SetBytes(0x80);
    return {LoadLanes(rows, 2) ^ sign, LoadLanes(rows, 18) ^ sign};
  }
}

// Of a block of each row: groups[g] holds the K values [4 g, 4 g + 4).
struct BlockTile {
  Wide groups[8];
};

template <PackedFormat kFormat, int kGroup>
FACET_INLINE BlockTile ReadTile(const TileRows& rows) {
  Wide first[4], last[4];
  FACET_UNROLL
  for (int i = 0; i < 4; ++i) {
    const BlockWeights weights = ReadWeights<kFormat, kGroup>(rows.lanes(i));
    first[i] = weights.first;
    last[i] = weights.last;
  }
  BlockTile tile;
  Transpose4(first, tile.groups);
  Transpose4(last, tile.groups + 4);
  FACET_UNROLL
  for (int g = 0; g < 8; ++g) tile.groups[g] &= rows.present;
  return tile;
}

// Two bytes at `offset` of the blocks of four rows.
FACET_INLINE uint64_t ReadHalves(const uint8_t* const* block, int offset) {
  uint64_t all = 0;
  FACET_UNROLL
  for (int i = 0; i < 4; ++i) {
    uint16_t half;
    __builtin_memcpy(&half, block[i] + offset, sizeof(half));
    all |= uint64_t{half} << (16 * i);
  }
  return all;
}

// The scales of a super-block's eight groups, of four rows: for each group four bytes of `first`,
// and of `second` minima or the second half's scales.
struct SuperScales {
  uint32_t first[8];
  uint32_t second[8];
};

// rows[i] begins with eight bytes of a row: turned into four bytes of each of eight groups.
FACET_INLINE void TurnBytes(const __m128i (&rows)[4], uint32_t (&groups)[8]) {
  const __m128i rows01 = _mm_unpacklo_epi8(rows[0], rows[1]);
  const __m128i rows23 = _mm_unpacklo_epi8(rows[2], rows[3]);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(groups), _mm_unpacklo_epi16(rows01, rows23));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(groups + 4), _mm_unpackhi_epi16(rows01, rows23));
}

// Six bits each, in twelve bytes: scales of groups 0-3, minima of groups 0-3 (with two bits of the
// others' above them), the low four bits of both of groups 4-7.
FACET_INLINE void ReadSixBits(const uint8_t* packed, __m128i* scales, __m128i* minima) {
  uint32_t words[3];
  __builtin_memcpy(words, packed, sizeof(words));
  constexpr uint32_t kSix = 0x3f3f3f3f, kFour = 0x0f0f0f0f, kTop = 0x30303030;
  const uint32_t high_scales = (words[2] & kFour) | (words[0] >> 2 & kTop);
  const uint32_t high_minima = (words[2] >> 4 & kFour) | (words[1] >> 2 & kTop);
  *scales =
      _mm_cvtsi64_si128(static_cast<int64_t>(uint64_t{high_scales} << 32 | (words[0] & kSix)));
  *minima =
      _mm_cvtsi64_si128(static_cast<int64_t>(uint64_t{high_minima} << 32 | (words[1] & kSix)));
}

template <PackedFormat kFormat>
FACET_INLINE SuperScales ReadSuperScales(const uint8_t* const* block) {
  __m128i first[4], second[4];
  FACET_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (LayoutOf(kFormat).has_min) {
      ReadSixBits(block[i] + 4, &first[i], &second[i]);
    } else {  // Q6_K, of the halves of groups by turns
      const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block[i] + 192));
      const __m128i low = _mm_and_si128(all, _mm_set1_epi16(255));
      first[i] = _mm_packus_epi16(low, low);
      const __m128i high = _mm_srli_epi16(all, 8);
      second[i] = _mm_packus_epi16(high, high);
    }
  }
  SuperScales scales;
  TurnBytes(first, scales.first);
  TurnBytes(second, scales.second);
  return scales;
}

}  // namespace FACET_ISA
}  // namespace facet

#endif  // FACET_KERNELS_CPU_BLOCK_TILE_H_
