#ifndef FACET_KERNELS_CPU_SIMD_TREES_H_
#define FACET_KERNELS_CPU_SIMD_TREES_H_

// Reductions over the sixteen lanes of simd.h, by the canonical tree (kernels/README.md). Compiled
// once per instruction set.

#include "kernels/cpu/simd.h"

namespace facet {
namespace FACET_ISA {

#if defined(__AVX512F__)

FACET_INLINE float MaxLane(VecF a) {
  const __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}
// The canonical order of adding sixteen accumulators.
FACET_INLINE float Tree(VecF a) {
  const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
struct AddFloats {
  FACET_INLINE __m512 Of(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
};
struct AddInts {
  FACET_INLINE __m512 Of(__m512 a, __m512 b) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  }
};
struct MaxInts {
  FACET_INLINE __m512 Of(__m512 a, __m512 b) {
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  }
};
// Lane i = the canonical tree over the lanes of a[i], with another operation in the place of +.
template <typename Op>
FACET_INLINE __m512 TreesOf(const __m512 (&a)[16]) {
  __m512 b[8];
  FACET_UNROLL
  for (int i = 0; i < 8; ++i) {  // a[i], a[i + 8]: eight sums each
    b[i] = Op::Of(_mm512_shuffle_f32x4(a[i], a[i + 8], 0x44),
                  _mm512_shuffle_f32x4(a[i], a[i + 8], 0xee));
  }
  __m512 c[4];
  FACET_UNROLL
  for (int i = 0; i < 4; ++i) {  // quarters: a[i], a[i + 8], a[i + 4], a[i + 12]
    c[i] = Op::Of(_mm512_shuffle_f32x4(b[i], b[i + 4], 0x88),
                  _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd));
  }
  __m512 d[2];
  FACET_UNROLL
  for (int i = 0; i < 2; ++i) {  // per quarter: two sums of c[i], two of c[i + 2]
    d[i] = Op::Of(_mm512_shuffle_ps(c[i], c[i + 2], 0x44), _mm512_shuffle_ps(c[i], c[i + 2], 0xee));
  }
  // Per quarter, from its first number n on: n, n + 2, n + 1, n + 3.
  const __m512 e = Op::Of(_mm512_shuffle_ps(d[0], d[1], 0x88), _mm512_shuffle_ps(d[0], d[1], 0xdd));
  const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
  return _mm512_permutexvar_ps(order, e);
}
// Lane i = Tree(a[i]).
FACET_INLINE VecF Trees(const VecF (&a)[16]) {
  __m512 v[16];
  FACET_UNROLL
  for (int i = 0; i < 16; ++i) v[i] = a[i].v;
  return {TreesOf<AddFloats>(v)};
}
// Lane i = the sum or the maximum of the lanes of a[i].
template <typename Op>
FACET_INLINE VecI LanesOf(const VecI (&a)[16]) {
  __m512 v[16];
  FACET_UNROLL
  for (int i = 0; i < 16; ++i) v[i] = _mm512_castsi512_ps(a[i].v);
  return {_mm512_castps_si512(TreesOf<Op>(v))};
}
FACET_INLINE VecI SumsOfLanes(const VecI (&a)[16]) { return LanesOf<AddInts>(a); }
FACET_INLINE VecI MaximaOfLanes(const VecI (&a)[16]) { return LanesOf<MaxInts>(a); }

#else  // AVX2, FMA, F16C

FACET_INLINE float MaxLane(VecF a) {
  const __m256 b = _mm256_max_ps(a.lo, a.hi);
  const __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}
// The canonical order of adding sixteen accumulators.
FACET_INLINE float Tree(VecF a) {
  const __m256 b = _mm256_add_ps(a.lo, a.hi);
  const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
struct AddFloats {
  FACET_INLINE __m256 Of(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
};
struct AddInts {
  FACET_INLINE __m256 Of(__m256 a, __m256 b) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  }
};
struct MaxInts {
  FACET_INLINE __m256 Of(__m256 a, __m256 b) {
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  }
};
// Four sums of eight numbers each, in order: the rest of the canonical tree.
template <typename Op>
FACET_INLINE __m128 FourTrees(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 ab = Op::Of(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  const __m256 cd = Op::Of(_mm256_permute2f128_ps(c, d, 0x20), _mm256_permute2f128_ps(c, d, 0x31));
  // Per half: two sums of a (b), two of c (d).
  const __m256 pairs = Op::Of(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  const __m256 sums =
      Op::Of(_mm256_shuffle_ps(pairs, pairs, 0x88), _mm256_shuffle_ps(pairs, pairs, 0xdd));
  return _mm_unpacklo_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}
// Lane i = the canonical tree over the lanes of a[i], with another operation in the place of +.
template <typename Op>
FACET_INLINE VecF TreesOf(const VecF (&a)[16]) {
  __m128 sums[4];
  FACET_UNROLL
  for (int i = 0; i < 4; ++i) {
    sums[i] = FourTrees<Op>(
        Op::Of(a[4 * i].lo, a[4 * i].hi), Op::Of(a[4 * i + 1].lo, a[4 * i + 1].hi),
        Op::Of(a[4 * i + 2].lo, a[4 * i + 2].hi), Op::Of(a[4 * i + 3].lo, a[4 * i + 3].hi));
  }
  return {_mm256_set_m128(sums[1], sums[0]), _mm256_set_m128(sums[3], sums[2])};
}
// Lane i = Tree(a[i]).
FACET_INLINE VecF Trees(const VecF (&a)[16]) { return TreesOf<AddFloats>(a); }
// Lane i = the sum or the maximum of the lanes of a[i].
template <typename Op>
FACET_INLINE VecI LanesOf(const VecI (&a)[16]) {
  VecF v[16];
  FACET_UNROLL
  for (int i = 0; i < 16; ++i) v[i] = AsFloat(a[i]);
  return AsInt(TreesOf<Op>(v));
}
FACET_INLINE VecI SumsOfLanes(const VecI (&a)[16]) { return LanesOf<AddInts>(a); }
FACET_INLINE VecI MaximaOfLanes(const VecI (&a)[16]) { return LanesOf<MaxInts>(a); }

#endif

}  // namespace FACET_ISA
}  // namespace facet

#endif  // FACET_KERNELS_CPU_SIMD_TREES_H_
