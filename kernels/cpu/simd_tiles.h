#ifndef FACET_KERNELS_CPU_SIMD_TILES_H_
#define FACET_KERNELS_CPU_SIMD_TILES_H_

// Vectors for packing: lanes of 16 bytes, each with something of four rows of a matrix, so that a
// vector of four K values of every row lies as in a panel (packed_format.h). Two lanes with AVX2,
// four, which is half a panel, with AVX-512. Compiled once per instruction set.

#include "kernels/cpu/simd.h"

namespace facet {
namespace FACET_ISA {

#if defined(__AVX512F__)

using Wide = __m512i;

FACET_INLINE Wide FromLanes(const __m128i (&lane)[4]) {
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(lane[0]), lane[1], 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(lane[2]), lane[3], 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
FACET_INLINE Wide SetBytes(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
FACET_INLINE Wide Repeat(__m128i lane) { return _mm512_broadcast_i32x4(lane); }
FACET_INLINE Wide ZipLow32(Wide a, Wide b) { return _mm512_unpacklo_epi32(a, b); }
FACET_INLINE Wide ZipHigh32(Wide a, Wide b) { return _mm512_unpackhi_epi32(a, b); }
FACET_INLINE Wide ZipLow64(Wide a, Wide b) { return _mm512_unpacklo_epi64(a, b); }
FACET_INLINE Wide ZipHigh64(Wide a, Wide b) { return _mm512_unpackhi_epi64(a, b); }
FACET_INLINE Wide Shuffle(Wide a, Wide places) { return _mm512_shuffle_epi8(a, places); }
template <int n>
FACET_INLINE Wide Right16(Wide a) {
  return _mm512_srli_epi16(a, n);
}
template <int n>
FACET_INLINE Wide Left16(Wide a) {
  return _mm512_slli_epi16(a, n);
}
// Each 32 bits turned right by eight.
FACET_INLINE Wide TurnRight8(Wide a) { return _mm512_ror_epi32(a, 8); }
// `value` in the bytes that have all bits of `bits`, which is never 0.
FACET_INLINE Wide WhereSet(Wide a, Wide bits, int value) {
  return _mm512_maskz_set1_epi8(_mm512_test_epi8_mask(a, bits), static_cast<char>(value));
}
// The squares of signed bytes, added up by four. REQUIRES: none is below -127.
FACET_INLINE Wide SumSquares(Wide a) {
  const Wide size = _mm512_abs_epi8(a);
  return _mm512_madd_epi16(_mm512_maddubs_epi16(size, size), _mm512_set1_epi16(1));
}
FACET_INLINE Wide Sub8(Wide a, Wide b) { return _mm512_sub_epi8(a, b); }
FACET_INLINE Wide Add32(Wide a, Wide b) { return _mm512_add_epi32(a, b); }
FACET_INLINE Wide Max32(Wide a, Wide b) { return _mm512_max_epi32(a, b); }
// All ones in the first `n` of 32 bits each.
FACET_INLINE Wide First32(int n) { return _mm512_maskz_set1_epi32(FirstLanes(n).v, -1); }

#else  // AVX2

using Wide = __m256i;

FACET_INLINE Wide FromLanes(const __m128i (&lane)[2]) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(lane[0]), lane[1], 1);
}
FACET_INLINE Wide SetBytes(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
FACET_INLINE Wide Repeat(__m128i lane) { return _mm256_broadcastsi128_si256(lane); }
FACET_INLINE Wide ZipLow32(Wide a, Wide b) { return _mm256_unpacklo_epi32(a, b); }
FACET_INLINE Wide ZipHigh32(Wide a, Wide b) { return _mm256_unpackhi_epi32(a, b); }
FACET_INLINE Wide ZipLow64(Wide a, Wide b) { return _mm256_unpacklo_epi64(a, b); }
FACET_INLINE Wide ZipHigh64(Wide a, Wide b) { return _mm256_unpackhi_epi64(a, b); }
FACET_INLINE Wide Shuffle(Wide a, Wide places) { return _mm256_shuffle_epi8(a, places); }
template <int n>
FACET_INLINE Wide Right16(Wide a) {
  return _mm256_srli_epi16(a, n);
}
template <int n>
FACET_INLINE Wide Left16(Wide a) {
  return _mm256_slli_epi16(a, n);
}
FACET_INLINE Wide TurnRight8(Wide a) {
  return _mm256_or_si256(_mm256_srli_epi32(a, 8), _mm256_slli_epi32(a, 24));
}
FACET_INLINE Wide WhereSet(Wide a, Wide bits, int value) {
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(a, bits), bits), SetBytes(value));
}
FACET_INLINE Wide SumSquares(Wide a) {
  const Wide size = _mm256_abs_epi8(a);
  return _mm256_madd_epi16(_mm256_maddubs_epi16(size, size), _mm256_set1_epi16(1));
}
FACET_INLINE Wide Sub8(Wide a, Wide b) { return _mm256_sub_epi8(a, b); }
FACET_INLINE Wide Add32(Wide a, Wide b) { return _mm256_add_epi32(a, b); }
FACET_INLINE Wide Max32(Wide a, Wide b) { return _mm256_max_epi32(a, b); }
FACET_INLINE Wide First32(int n) { return FirstLanes(n).lo; }

#endif

constexpr int kLanes = sizeof(Wide) / 16;
constexpr int kTileColumns = 4 * kLanes;  // of a panel: rows of the file

FACET_INLINE Wide LoadWide(const void* p) {
  Wide a;
  __builtin_memcpy(&a, p, sizeof(a));
  return a;
}
FACET_INLINE void StoreWide(void* p, Wide a) { __builtin_memcpy(p, &a, sizeof(a)); }

// Every fourth row: one to a lane.
struct LaneRows {
  const uint8_t* at[kLanes];
};

FACET_INLINE Wide LoadLanes(const LaneRows& rows, int64_t offset) {
  __m128i lane[kLanes];
  FACET_UNROLL
  for (int i = 0; i < kLanes; ++i) {
    lane[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.at[i] + offset));
  }
  return FromLanes(lane);
}
// Four bytes, four times in each lane.
FACET_INLINE Wide LoadQuads(const LaneRows& rows, int64_t offset) {
  __m128i lane[kLanes];
  FACET_UNROLL
  for (int i = 0; i < kLanes; ++i) {
    int32_t quad;
    __builtin_memcpy(&quad, rows.at[i] + offset, sizeof(quad));
    lane[i] = _mm_set1_epi32(quad);
  }
  return FromLanes(lane);
}

// In every lane rows[i] and columns[i] are four words of 32 bits: the matrix of them, transposed.
FACET_INLINE void Transpose4(const Wide (&rows)[4], Wide* columns) {
  const Wide low01 = ZipLow32(rows[0], rows[1]);
  const Wide low23 = ZipLow32(rows[2], rows[3]);
  const Wide high01 = ZipHigh32(rows[0], rows[1]);
  const Wide high23 = ZipHigh32(rows[2], rows[3]);
  columns[0] = ZipLow64(low01, low23);
  columns[1] = ZipHigh64(low01, low23);
  columns[2] = ZipLow64(high01, high23);
  columns[3] = ZipHigh64(high01, high23);
}

}  // namespace FACET_ISA
}  // namespace facet

#endif  // FACET_KERNELS_CPU_SIMD_TILES_H_
