#ifndef FACET_KERNELS_CPU_SIMD_BYTES_H_
#define FACET_KERNELS_CPU_SIMD_BYTES_H_

// Vectors of 64 bytes, four to a lane of simd.h: weights being unpacked, and their dot products
// with activations. Compiled once per instruction set.

#include "kernels/cpu/simd.h"

namespace facet {
namespace FACET_ISA {

#if defined(__AVX512F__)

struct VecB {
  __m512i v;
};

FACET_INLINE VecB LoadBytes(const void* p) { return {_mm512_loadu_si512(p)}; }
FACET_INLINE VecB NoBytes() { return {_mm512_setzero_si512()}; }
FACET_INLINE VecB LowNibbles(VecB a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(0x0f))}; }
FACET_INLINE VecB HighNibbles(VecB a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(0x0f))};
}
// a | (b shifted left by n, or right by -n, & mask) per byte; the mask must drop what crosses from
// one byte to another.
template <int n>
FACET_INLINE VecB OrShifted(VecB a, VecB b, char mask) {
  __m512i moved = b.v;
  if constexpr (n > 0) moved = _mm512_slli_epi16(b.v, n);
  if constexpr (n < 0) moved = _mm512_srli_epi16(b.v, -n);
  return {_mm512_ternarylogic_epi32(a.v, moved, _mm512_set1_epi8(mask), 0xf8)};
}
// Each lane of four bytes rotated left by n bits.
template <int n>
FACET_INLINE VecB RotatedLanes(VecB a) {
  return {_mm512_rol_epi32(a.v, n)};
}
// Bit by bit: of a where the mask, the same for every byte, has a 1, else of b.
FACET_INLINE VecB Blend(char mask, VecB a, VecB b) {
  return {_mm512_ternarylogic_epi32(a.v, b.v, _mm512_set1_epi8(mask), 0xe4)};
}
FACET_INLINE VecB Broadcast4(const int8_t* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, 4);
  return {_mm512_set1_epi32(quad)};
}
// Stores a + shift, byte by byte.
FACET_INLINE void StoreShifted(void* p, VecB a, int shift) {
  _mm512_storeu_si512(p, _mm512_add_epi8(a.v, _mm512_set1_epi8(static_cast<char>(shift))));
}
// sum + w0 . a0 + w1 . a1 per lane of four bytes; weights unsigned, activations signed.
template <int kBits>
FACET_INLINE VecI Dot(VecI sum, VecB w0, VecB a0, VecB w1, VecB a1) {
  return {_mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum.v, w0.v, a0.v), w1.v, a1.v)};
}

// Two rows of 32 numbers as bytes. Quad g of the first row, its numbers 4 g to 4 g + 3, becomes
// lane 4 (g % 4) + g / 4, of the second one the lane two further on.
FACET_INLINE __m512i PackTwo(const VecI (&a)[2], const VecI (&b)[2]) {
  return _mm512_packs_epi16(_mm512_packs_epi32(a[0].v, a[1].v), _mm512_packs_epi32(b[0].v, b[1].v));
}
// Where lane i of the vectors [group][row] is found in PackTwo() of rows 2 p and 2 p + 1.
template <int kRows>
struct QuadPlaces {
  static constexpr int kPairs = (kRows + 1) / 2;
  int32_t lane[16 * kPairs];
  __mmask16 from[kPairs][kPairs];  // [vector][pair]

  constexpr QuadPlaces() : lane(), from() {
    for (int i = 0; i < 8 * kRows; ++i) {
      const int group = i / kRows;
      const int row = i % kRows;
      lane[i] = 4 * (group % 4) + group / 4 + 2 * (row % 2);
      from[i / 16][row / 2] = static_cast<__mmask16>(from[i / 16][row / 2] | 1u << i % 16);
    }
  }
};
// Stores kRows rows of 32 numbers as bytes, [quad][row][4]. REQUIRES: they fit.
template <int kRows>
FACET_INLINE void StoreQuads(const VecI (&q)[kRows][2], int8_t* to) {
  static constexpr QuadPlaces<kRows> kPlaces;
  constexpr int kPairs = QuadPlaces<kRows>::kPairs;
  __m512i pairs[kPairs];
  FACET_UNROLL
  for (int p = 0; p < kPairs; ++p) pairs[p] = PackTwo(q[2 * p], q[(2 * p + 1) % kRows]);
  FACET_UNROLL
  for (int v = 0; v < kPairs; ++v) {
    const __m512i lane = _mm512_loadu_si512(kPlaces.lane + 16 * v);
    __m512i quads = _mm512_maskz_permutexvar_epi32(kPlaces.from[v][0], lane, pairs[0]);
    FACET_UNROLL
    for (int p = 1; p < kPairs; ++p) {
      quads = _mm512_mask_permutexvar_epi32(quads, kPlaces.from[v][p], lane, pairs[p]);
    }
    if (2 * v + 1 < kRows) {
      _mm512_storeu_si512(to + 64 * v, quads);
    } else {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 64 * v), _mm512_castsi512_si256(quads));
    }
  }
}
// The sums of the halves of every row, [kRows][2]. REQUIRES: bytes could hold the numbers.
template <int kRows>
FACET_INLINE void StoreSums(const VecI (&q)[kRows][2], int32_t* sums) {
  FACET_UNROLL
  for (int row = 0; row < kRows; row += 2) {
    const __m512i quads = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1),
                                              PackTwo(q[row], q[(row + 1) % kRows]));
    const __m256i b =
        _mm256_add_epi32(_mm512_castsi512_si256(quads), _mm512_extracti32x8_epi32(quads, 1));
    const __m128i c = _mm_add_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    if (row + 1 < kRows) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 2 * row), c);
    } else {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(sums + 2 * row), c);
    }
  }
}

#else  // AVX2, FMA, F16C

struct VecB {
  __m256i lo, hi;
};

FACET_INLINE VecB LoadBytes(const void* p) {
  const __m256i* bytes = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(bytes), _mm256_loadu_si256(bytes + 1)};
}
FACET_INLINE VecB NoBytes() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
FACET_INLINE VecB LowNibbles(VecB a) {
  const __m256i mask = _mm256_set1_epi8(0x0f);
  return {_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
FACET_INLINE VecB HighNibbles(VecB a) {
  return LowNibbles({_mm256_srli_epi16(a.lo, 4), _mm256_srli_epi16(a.hi, 4)});
}
template <int n>
FACET_INLINE __m256i Moved(__m256i a) {
  if constexpr (n > 0) return _mm256_slli_epi16(a, n);
  if constexpr (n < 0) return _mm256_srli_epi16(a, -n);
  return a;
}
// a | (b shifted left by n, or right by -n, & mask) per byte; the mask must drop what crosses from
// one byte to another.
template <int n>
FACET_INLINE VecB OrShifted(VecB a, VecB b, char mask) {
  const __m256i masks = _mm256_set1_epi8(mask);
  return {_mm256_or_si256(a.lo, _mm256_and_si256(Moved<n>(b.lo), masks)),
          _mm256_or_si256(a.hi, _mm256_and_si256(Moved<n>(b.hi), masks))};
}
// Each lane of four bytes rotated left by n bits.
template <int n>
FACET_INLINE __m256i Rotated(__m256i a) {
  return _mm256_or_si256(_mm256_slli_epi32(a, n), _mm256_srli_epi32(a, 32 - n));
}
template <int n>
FACET_INLINE VecB RotatedLanes(VecB a) {
  return {Rotated<n>(a.lo), Rotated<n>(a.hi)};
}
// Bit by bit: of a where the mask, the same for every byte, has a 1, else of b.
FACET_INLINE VecB Blend(char mask, VecB a, VecB b) {
  const __m256i masks = _mm256_set1_epi8(mask);
  return {_mm256_or_si256(_mm256_and_si256(masks, a.lo), _mm256_andnot_si256(masks, b.lo)),
          _mm256_or_si256(_mm256_and_si256(masks, a.hi), _mm256_andnot_si256(masks, b.hi))};
}
FACET_INLINE VecB Broadcast4(const int8_t* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, 4);
  const __m256i v = _mm256_set1_epi32(quad);
  return {v, v};
}
// Stores a + shift, byte by byte.
FACET_INLINE void StoreShifted(void* p, VecB a, int shift) {
  const __m256i shifts = _mm256_set1_epi8(static_cast<char>(shift));
  __m256i* to = static_cast<__m256i*>(p);
  _mm256_storeu_si256(to, _mm256_add_epi8(a.lo, shifts));
  _mm256_storeu_si256(to + 1, _mm256_add_epi8(a.hi, shifts));
}
template <int kBits>
FACET_INLINE __m256i DotHalf(__m256i w0, __m256i a0, __m256i w1, __m256i a1) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (kBits < 8) {  // the sum of four products of 63 and 127 fits into 16 bits
    return _mm256_madd_epi16(
        _mm256_add_epi16(_mm256_maddubs_epi16(w0, a0), _mm256_maddubs_epi16(w1, a1)), ones);
  }
  // Signed weights as magnitude and sign: the sum of two products of 128 and 127 fits.
  const __m256i p0 = _mm256_maddubs_epi16(_mm256_abs_epi8(w0), _mm256_sign_epi8(a0, w0));
  const __m256i p1 = _mm256_maddubs_epi16(_mm256_abs_epi8(w1), _mm256_sign_epi8(a1, w1));
  return _mm256_add_epi32(_mm256_madd_epi16(p0, ones), _mm256_madd_epi16(p1, ones));
}
// sum + w0 . a0 + w1 . a1 per lane of four bytes; weights of less than 8 bits unsigned, of 8 bits
// signed; activations signed, at least -127.
template <int kBits>
FACET_INLINE VecI Dot(VecI sum, VecB w0, VecB a0, VecB w1, VecB a1) {
  return {_mm256_add_epi32(sum.lo, DotHalf<kBits>(w0.lo, a0.lo, w1.lo, a1.lo)),
          _mm256_add_epi32(sum.hi, DotHalf<kBits>(w0.hi, a0.hi, w1.hi, a1.hi))};
}
// Stored with an offset of 128 -> signed.
FACET_INLINE VecB FlipSigns(VecB a) {
  const __m256i sign = _mm256_set1_epi8(-128);
  return {_mm256_xor_si256(a.lo, sign), _mm256_xor_si256(a.hi, sign)};
}

// A row of 32 numbers as bytes.
FACET_INLINE __m256i PackOne(const VecI (&a)[2]) {
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a[0].lo, a[0].hi),
                                           _mm256_packs_epi32(a[1].lo, a[1].hi));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
// Stores kRows rows of 32 numbers as bytes, [quad][row][4]. REQUIRES: they fit.
template <int kRows>
FACET_INLINE void StoreQuads(const VecI (&q)[kRows][2], int8_t* to) {
  FACET_UNROLL
  for (int row = 0; row < kRows; ++row) {
    alignas(32) int32_t quads[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(quads), PackOne(q[row]));
    FACET_UNROLL
    for (int i = 0; i < 8; ++i) __builtin_memcpy(to + 4 * (i * kRows + row), &quads[i], 4);
  }
}
// The sum of the lanes of a, then of b.
FACET_INLINE __m128i TwoSums(VecI a, VecI b) {
  const __m256i both =
      _mm256_hadd_epi32(_mm256_add_epi32(a.lo, a.hi), _mm256_add_epi32(b.lo, b.hi));
  const __m128i quarters =
      _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  return _mm_hadd_epi32(quarters, quarters);
}
// The sums of the halves of every row, [kRows][2]. REQUIRES: bytes could hold the numbers.
template <int kRows>
FACET_INLINE void StoreSums(const VecI (&q)[kRows][2], int32_t* sums) {
  FACET_UNROLL
  for (int row = 0; row < kRows; ++row) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(sums + 2 * row), TwoSums(q[row][0], q[row][1]));
  }
}

#endif

}  // namespace FACET_ISA
}  // namespace facet

#endif  // FACET_KERNELS_CPU_SIMD_BYTES_H_
