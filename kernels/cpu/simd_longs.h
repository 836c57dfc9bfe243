#ifndef FACET_KERNELS_CPU_SIMD_LONGS_H_
#define FACET_KERNELS_CPU_SIMD_LONGS_H_

// Sixteen 64-bit integers: what random draws are mixed in. Compiled once per instruction set, like
// simd.h.

#include "kernels/cpu/simd.h"

namespace facet {
namespace FACET_ISA {

#if defined(__AVX512F__)

// In two registers.
struct VecL {
  __m512i lo, hi;
};
FACET_INLINE VecL SetL(uint64_t x) {
  const __m512i v = _mm512_set1_epi64(static_cast<int64_t>(x));
  return {v, v};
}
FACET_INLINE VecL WidenL(VecI a) {  // unsigned
  return {_mm512_cvtepu32_epi64(_mm512_castsi512_si256(a.v)),
          _mm512_cvtepu32_epi64(_mm512_extracti32x8_epi32(a.v, 1))};
}
FACET_INLINE VecL XorL(VecL a, VecL b) {
  return {_mm512_xor_si512(a.lo, b.lo), _mm512_xor_si512(a.hi, b.hi)};
}
FACET_INLINE VecL AddL(VecL a, VecL b) {
  return {_mm512_add_epi64(a.lo, b.lo), _mm512_add_epi64(a.hi, b.hi)};
}
FACET_INLINE VecL MulL(VecL a, VecL b) {
  return {_mm512_mullo_epi64(a.lo, b.lo), _mm512_mullo_epi64(a.hi, b.hi)};
}
template <int n>
FACET_INLINE VecL ShiftRightL(VecL a) {  // logical
  return {_mm512_srli_epi64(a.lo, n), _mm512_srli_epi64(a.hi, n)};
}
FACET_INLINE VecI NarrowL(VecL a) {  // the low halves
  return {_mm512_inserti32x8(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(a.lo)),
                             _mm512_cvtepi64_epi32(a.hi), 1)};
}

#else  // AVX2, FMA, F16C

// In four registers.
struct VecL {
  __m256i v[4];
};
FACET_INLINE VecL SetL(uint64_t x) {
  const __m256i v = _mm256_set1_epi64x(static_cast<int64_t>(x));
  return {{v, v, v, v}};
}
FACET_INLINE VecL WidenL(VecI a) {  // unsigned
  return {{_mm256_cvtepu32_epi64(_mm256_castsi256_si128(a.lo)),
           _mm256_cvtepu32_epi64(_mm256_extracti128_si256(a.lo, 1)),
           _mm256_cvtepu32_epi64(_mm256_castsi256_si128(a.hi)),
           _mm256_cvtepu32_epi64(_mm256_extracti128_si256(a.hi, 1))}};
}
FACET_INLINE VecL XorL(VecL a, VecL b) {
  FACET_UNROLL
  for (int i = 0; i < 4; ++i) a.v[i] = _mm256_xor_si256(a.v[i], b.v[i]);
  return a;
}
FACET_INLINE VecL AddL(VecL a, VecL b) {
  FACET_UNROLL
  for (int i = 0; i < 4; ++i) a.v[i] = _mm256_add_epi64(a.v[i], b.v[i]);
  return a;
}
FACET_INLINE __m256i MulLow64(__m256i a, __m256i b) {
  const __m256i cross = _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(a, 32), b),
                                         _mm256_mul_epu32(a, _mm256_srli_epi64(b, 32)));
  return _mm256_add_epi64(_mm256_mul_epu32(a, b), _mm256_slli_epi64(cross, 32));
}
FACET_INLINE VecL MulL(VecL a, VecL b) {
  FACET_UNROLL
  for (int i = 0; i < 4; ++i) a.v[i] = MulLow64(a.v[i], b.v[i]);
  return a;
}
template <int n>
FACET_INLINE VecL ShiftRightL(VecL a) {  // logical
  FACET_UNROLL
  for (int i = 0; i < 4; ++i) a.v[i] = _mm256_srli_epi64(a.v[i], n);
  return a;
}
FACET_INLINE __m256i NarrowPair(__m256i a, __m256i b) {
  const __m256 mixed = _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0x88);
  return _mm256_permute4x64_epi64(_mm256_castps_si256(mixed), 0xd8);
}
FACET_INLINE VecI NarrowL(VecL a) {  // the low halves
  return {NarrowPair(a.v[0], a.v[1]), NarrowPair(a.v[2], a.v[3])};
}

#endif

}  // namespace FACET_ISA
}  // namespace facet

#endif  // FACET_KERNELS_CPU_SIMD_LONGS_H_
