#ifndef FACET_KERNELS_CPU_BLOCK_TILE_H_
#define FACET_KERNELS_CPU_BLOCK_TILE_H_

// Four rows of a matrix in a file, a block of 32 weights of each at a time, turned so that they lie
// as in a panel (packed_format.h): a vector holds four K values of each of the four rows. With the
// instructions that every x86-64 has, because packing runs at the speed of memory with them.

#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/device.h"

namespace facet {

using Bytes16 = __m128i;

inline constexpr int kTileRows = 4;

// The rows of a tile. A panel at a matrix's end may lack some: these repeat the first one, and what
// they give is masked out.
struct TileRows {
  const uint8_t* row[kTileRows] = {};  // their first bytes
  int column = 0;                      // of the panel, for the first of them
  uint64_t present = ~uint64_t{0};     // 16 bits of each row

  int count() const { return std::popcount(present) / 16; }
  Bytes16 words() const {  // 32 bits of each
    const Bytes16 halves = _mm_cvtsi64_si128(static_cast<int64_t>(present));
    return _mm_unpacklo_epi16(halves, halves);
  }
  uint32_t bytes() const {  // 8 bits of each
    const Bytes16 halves = _mm_cvtsi64_si128(static_cast<int64_t>(present));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_packs_epi16(halves, halves)));
  }
};

inline Bytes16 Load16Bytes(const uint8_t* from) {
  return _mm_loadu_si128(reinterpret_cast<const Bytes16*>(from));
}
inline void Store16Bytes(uint8_t* to, Bytes16 value) {
  _mm_storeu_si128(reinterpret_cast<Bytes16*>(to), value);
}
// Bits of each byte: those of `mask`, once they are moved down by `shift`.
inline Bytes16 Bits(Bytes16 value, int shift, int mask) {
  return _mm_and_si128(_mm_srli_epi16(value, shift), _mm_set1_epi8(static_cast<char>(mask)));
}

// The stored (unsigned) weights of a block, in the order of K.
struct BlockWeights {
  Bytes16 first, last;
};

// Bit k of `bits` to bit 4 of byte k.
inline Bytes16 FifthBits(uint32_t bits) {
  constexpr uint64_t kEach = 0x0101010101010101;
  const Bytes16 bit = _mm_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  const Bytes16 spread = _mm_set_epi64x(static_cast<int64_t>((bits >> 8 & 255) * kEach),
                                        static_cast<int64_t>((bits & 255) * kEach));
  return _mm_and_si128(_mm_cmpeq_epi8(_mm_and_si128(spread, bit), bit), _mm_set1_epi8(16));
}

inline BlockWeights ReadNibbles(const uint8_t* nibbles) {
  const Bytes16 both = Load16Bytes(nibbles);
  return {Bits(both, 0, 15), Bits(both, 4, 15)};
}

inline BlockWeights ReadFiveBits(const uint8_t* nibbles, const uint8_t* fifth) {
  uint32_t bits;
  std::memcpy(&bits, fifth, sizeof(bits));
  BlockWeights weights = ReadNibbles(nibbles);
  weights.first = _mm_or_si128(weights.first, FifthBits(bits));
  weights.last = _mm_or_si128(weights.last, FifthBits(bits >> 16));
  return weights;
}

// Weights from nibbles and from bits that stand `mask` wide at `high_shift`.
inline BlockWeights Join(const uint8_t* nibbles, int shift, const uint8_t* high, int high_shift,
                         int mask) {
  const auto join = [&](int at) {
    const Bytes16 top = Bits(Load16Bytes(high + at), high_shift, mask);
    return _mm_or_si128(Bits(Load16Bytes(nibbles + at), shift, 15), _mm_slli_epi16(top, 4));
  };
  return {join(0), join(16)};
}

// Group `group` of 32 of a block in the file.
template <TensorType kType>
BlockWeights ReadWeights(const uint8_t* block, int group) {
  if constexpr (kType == TensorType::kQ4_0) return ReadNibbles(block + 2);
  if constexpr (kType == TensorType::kQ4_1) return ReadNibbles(block + 4);
  if constexpr (kType == TensorType::kQ5_0) return ReadFiveBits(block + 6, block + 2);
  if constexpr (kType == TensorType::kQ5_1) return ReadFiveBits(block + 8, block + 4);
  if constexpr (kType == TensorType::kQ4_K) {
    const uint8_t* nibbles = block + 16 + 32 * (group / 2);
    const int shift = 4 * (group % 2);
    return {Bits(Load16Bytes(nibbles), shift, 15), Bits(Load16Bytes(nibbles + 16), shift, 15)};
  }
  if constexpr (kType == TensorType::kQ5_K) {
    return Join(block + 48 + 32 * (group / 2), 4 * (group % 2), block + 16, group, 1);
  }
  if constexpr (kType == TensorType::kQ6_K) {
    return Join(block + 64 * (group / 4) + 32 * (group % 2), group % 4 < 2 ? 0 : 4,
                block + 128 + 32 * (group / 4), 2 * (group % 4), 3);
  }
  if constexpr (kType == TensorType::kQ8_0) {  // q + 128
    const Bytes16 sign = _mm_set1_epi8(static_cast<char>(0x80));
    return {_mm_xor_si128(Load16Bytes(block + 2), sign),
            _mm_xor_si128(Load16Bytes(block + 18), sign)};
  }
}

// rows[i] and columns[i] are four words of 32 bits: the matrix of them, transposed.
inline void Transpose4(const Bytes16 rows[4], Bytes16 columns[4]) {
  const Bytes16 low01 = _mm_unpacklo_epi32(rows[0], rows[1]);
  const Bytes16 low23 = _mm_unpacklo_epi32(rows[2], rows[3]);
  const Bytes16 high01 = _mm_unpackhi_epi32(rows[0], rows[1]);
  const Bytes16 high23 = _mm_unpackhi_epi32(rows[2], rows[3]);
  columns[0] = _mm_unpacklo_epi64(low01, low23);
  columns[1] = _mm_unpackhi_epi64(low01, low23);
  columns[2] = _mm_unpacklo_epi64(high01, high23);
  columns[3] = _mm_unpackhi_epi64(high01, high23);
}

// A block of four rows: groups[g] holds the K values [4 g, 4 g + 4) of each.
struct BlockTile {
  Bytes16 groups[8];
};

// `block`: where each row's block lies in the file.
template <TensorType kType>
BlockTile ReadTile(const uint8_t* const block[kTileRows], int group, Bytes16 present) {
  Bytes16 first[kTileRows], last[kTileRows];
  for (int i = 0; i < kTileRows; ++i) {
    const BlockWeights weights = ReadWeights<kType>(block[i], group);
    first[i] = weights.first;
    last[i] = weights.last;
  }
  BlockTile tile;
  Transpose4(first, tile.groups);
  Transpose4(last, tile.groups + 4);
  for (Bytes16& weights : tile.groups) weights = _mm_and_si128(weights, present);
  return tile;
}

// Two bytes at `offset` of each row's block.
inline uint64_t ReadHalves(const uint8_t* const block[kTileRows], int offset) {
  uint64_t all = 0;
  for (int i = 0; i < kTileRows; ++i) {
    uint16_t half;
    std::memcpy(&half, block[i] + offset, sizeof(half));
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
inline void TurnBytes(const Bytes16 rows[kTileRows], uint32_t groups[8]) {
  const Bytes16 rows01 = _mm_unpacklo_epi8(rows[0], rows[1]);
  const Bytes16 rows23 = _mm_unpacklo_epi8(rows[2], rows[3]);
  _mm_storeu_si128(reinterpret_cast<Bytes16*>(groups), _mm_unpacklo_epi16(rows01, rows23));
  _mm_storeu_si128(reinterpret_cast<Bytes16*>(groups + 4), _mm_unpackhi_epi16(rows01, rows23));
}

// Six bits each, in twelve bytes: scales of groups 0-3, minima of groups 0-3 (with two bits of the
// others' above them), the low four bits of both of groups 4-7.
inline void ReadSixBits(const uint8_t* packed, Bytes16* scales, Bytes16* minima) {
  uint32_t words[3];
  std::memcpy(words, packed, sizeof(words));
  constexpr uint32_t kSix = 0x3f3f3f3f, kFour = 0x0f0f0f0f, kTop = 0x30303030;
  const uint32_t high_scales = (words[2] & kFour) | (words[0] >> 2 & kTop);
  const uint32_t high_minima = (words[2] >> 4 & kFour) | (words[1] >> 2 & kTop);
  *scales =
      _mm_cvtsi64_si128(static_cast<int64_t>(uint64_t{high_scales} << 32 | (words[0] & kSix)));
  *minima =
      _mm_cvtsi64_si128(static_cast<int64_t>(uint64_t{high_minima} << 32 | (words[1] & kSix)));
}

template <TensorType kType>
SuperScales ReadSuperScales(const uint8_t* const block[kTileRows]) {
  Bytes16 first[kTileRows], second[kTileRows];
  for (int i = 0; i < kTileRows; ++i) {
    if constexpr (kType == TensorType::kQ6_K) {
      const Bytes16 all = Load16Bytes(block[i] + 192);  // of the halves of groups, by turns
      const Bytes16 low = _mm_and_si128(all, _mm_set1_epi16(255));
      first[i] = _mm_packus_epi16(low, low);
      const Bytes16 high = _mm_srli_epi16(all, 8);
      second[i] = _mm_packus_epi16(high, high);
    } else {
      ReadSixBits(block[i] + 4, &first[i], &second[i]);
    }
  }
  SuperScales scales;
  TurnBytes(first, scales.first);
  TurnBytes(second, scales.second);
  return scales;
}

}  // namespace facet

#endif  // FACET_KERNELS_CPU_BLOCK_TILE_H_
