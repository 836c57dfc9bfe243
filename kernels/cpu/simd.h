#ifndef FACET_KERNELS_CPU_SIMD_H_
#define FACET_KERNELS_CPU_SIMD_H_

// Sixteen lanes, as one AVX-512 register or as two AVX2 registers: sixteen because every canonical
// reduction has sixteen accumulators. Included only by the files that are compiled once per
// instruction set, with FACET_ISA naming the namespace (avx2 or avx512). Everything here is
// always_inline or has a name of its own per instruction set, so that the linker cannot use a copy
// for AVX-512 anywhere else; for the same reason these files use no inline functions of std.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define FACET_INLINE [[gnu::always_inline]] static inline
#define FACET_UNROLL _Pragma("GCC unroll 16")

namespace facet {
namespace FACET_ISA {

#if defined(__AVX512F__)

// With registers for it, a tile covers both halves of a panel at once.
constexpr bool kWideTile = true;
// The dot product takes unsigned weights up to 255.
constexpr bool kWideWeights = true;

struct VecF {
  __m512 v;
};
struct VecI {
  __m512i v;
};
struct VecB {  // 64 bytes
  __m512i v;
};
struct Mask {
  __mmask16 v;
};

FACET_INLINE Mask FirstLanes(int n) { return {_cvtu32_mask16((1u << n) - 1u)}; }
FACET_INLINE uint32_t Bits(Mask m) { return _cvtmask16_u32(m.v); }

FACET_INLINE VecF Zero() { return {_mm512_setzero_ps()}; }
FACET_INLINE VecF Set(float x) { return {_mm512_set1_ps(x)}; }
FACET_INLINE VecF Load(const float* p) { return {_mm512_loadu_ps(p)}; }
FACET_INLINE VecF Load(const float* p, Mask m) { return {_mm512_maskz_loadu_ps(m.v, p)}; }
FACET_INLINE void Store(float* p, VecF a) { _mm512_storeu_ps(p, a.v); }
FACET_INLINE void Store(float* p, VecF a, Mask m) { _mm512_mask_storeu_ps(p, m.v, a.v); }
FACET_INLINE VecF LoadHalf(const void* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
FACET_INLINE void StoreHalf(void* p, VecF a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
FACET_INLINE VecF LoadBFloat(const void* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))), 16))};
}
FACET_INLINE VecF LoadUnsigned(const void* p) {  // 16 x u8
  return {
      _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))))};
}
FACET_INLINE VecF LoadSigned(const void* p) {  // 16 x s8
  return {
      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))))};
}

FACET_INLINE VecF Add(VecF a, VecF b) { return {_mm512_add_ps(a.v, b.v)}; }
FACET_INLINE VecF Sub(VecF a, VecF b) { return {_mm512_sub_ps(a.v, b.v)}; }
FACET_INLINE VecF Mul(VecF a, VecF b) { return {_mm512_mul_ps(a.v, b.v)}; }
FACET_INLINE VecF Div(VecF a, VecF b) { return {_mm512_div_ps(a.v, b.v)}; }
FACET_INLINE VecF Fma(VecF a, VecF b, VecF c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
FACET_INLINE VecF Max(VecF a, VecF b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where NaN
FACET_INLINE VecF Min(VecF a, VecF b) { return {_mm512_min_ps(a.v, b.v)}; }
FACET_INLINE VecF Negate(VecF a) {
  return {_mm512_castsi512_ps(
      _mm512_xor_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(INT32_MIN)))};
}
FACET_INLINE Mask Less(VecF a, VecF b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
FACET_INLINE Mask AtLeast(VecF a, VecF b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
FACET_INLINE VecF Select(Mask m, VecF a, VecF b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }

FACET_INLINE VecI SetI(int32_t x) { return {_mm512_set1_epi32(x)}; }
FACET_INLINE VecI LoadI(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
FACET_INLINE void StoreI(int32_t* p, VecI a) { _mm512_storeu_si512(p, a.v); }
FACET_INLINE VecI Add(VecI a, VecI b) { return {_mm512_add_epi32(a.v, b.v)}; }
FACET_INLINE VecI Sub(VecI a, VecI b) { return {_mm512_sub_epi32(a.v, b.v)}; }
FACET_INLINE VecI And(VecI a, VecI b) { return {_mm512_and_si512(a.v, b.v)}; }
FACET_INLINE VecI Max(VecI a, VecI b) { return {_mm512_max_epi32(a.v, b.v)}; }
FACET_INLINE Mask AtLeast(VecI a, VecI b) { return {_mm512_cmpge_epi32_mask(a.v, b.v)}; }
template <int n>
FACET_INLINE VecI ShiftLeft(VecI a) {
  return {_mm512_slli_epi32(a.v, n)};
}
template <int n>
FACET_INLINE VecI ShiftRight(VecI a) {  // arithmetic
  return {_mm512_srai_epi32(a.v, n)};
}
FACET_INLINE VecF AsFloat(VecI a) { return {_mm512_castsi512_ps(a.v)}; }
FACET_INLINE VecI AsInt(VecF a) { return {_mm512_castps_si512(a.v)}; }
FACET_INLINE VecF ToFloat(VecI a) { return {_mm512_cvtepi32_ps(a.v)}; }
FACET_INLINE VecI ToInt(VecF a) { return {_mm512_cvtps_epi32(a.v)}; }  // ties to even
FACET_INLINE VecI Select(Mask m, VecI a, VecI b) {
  return {_mm512_mask_blend_epi32(m.v, b.v, a.v)};
}
// Stores the lanes as bytes. REQUIRES: they fit.
FACET_INLINE void StoreBytes(void* p, VecI a) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}

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

// The 64-bit product, lane by lane; 16 lanes in two registers.
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

constexpr bool kWideTile = false;
constexpr bool kWideWeights = false;

struct VecF {
  __m256 lo, hi;
};
struct VecI {
  __m256i lo, hi;
};
struct VecB {  // 64 bytes
  __m256i lo, hi;
};
struct Mask {
  __m256i lo, hi;
};

FACET_INLINE Mask FirstLanes(int n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes),
          _mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lanes)};
}
FACET_INLINE uint32_t Bits(Mask m) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m.lo))) |
         static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m.hi))) << 8;
}

FACET_INLINE VecF Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
FACET_INLINE VecF Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
FACET_INLINE VecF Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
FACET_INLINE VecF Load(const float* p, Mask m) {
  return {_mm256_maskload_ps(p, m.lo), _mm256_maskload_ps(p + 8, m.hi)};
}
FACET_INLINE void Store(float* p, VecF a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
FACET_INLINE void Store(float* p, VecF a, Mask m) {
  _mm256_maskstore_ps(p, m.lo, a.lo);
  _mm256_maskstore_ps(p + 8, m.hi, a.hi);
}
FACET_INLINE VecF LoadHalf(const void* p) {
  const __m128i* halves = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
FACET_INLINE void StoreHalf(void* p, VecF a) {
  __m128i* halves = static_cast<__m128i*>(p);
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(halves, _mm256_cvtps_ph(a.lo, kNearest));
  _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(a.hi, kNearest));
}
FACET_INLINE VecF LoadBFloat(const void* p) {
  const __m128i* halves = static_cast<const __m128i*>(p);
  const __m256i lo = _mm256_cvtepu16_epi32(_mm_loadu_si128(halves));
  const __m256i hi = _mm256_cvtepu16_epi32(_mm_loadu_si128(halves + 1));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
}
FACET_INLINE VecF LoadUnsigned(const void* p) {  // 16 x u8
  const __m128i* bytes = static_cast<const __m128i*>(p);
  const __m128i all = _mm_loadu_si128(bytes);
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(all)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(all, 8)))};
}
FACET_INLINE VecF LoadSigned(const void* p) {  // 16 x s8
  const __m128i* bytes = static_cast<const __m128i*>(p);
  const __m128i all = _mm_loadu_si128(bytes);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(all, 8)))};
}

FACET_INLINE VecF Add(VecF a, VecF b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
FACET_INLINE VecF Sub(VecF a, VecF b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
FACET_INLINE VecF Mul(VecF a, VecF b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
FACET_INLINE VecF Div(VecF a, VecF b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
FACET_INLINE VecF Fma(VecF a, VecF b, VecF c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
FACET_INLINE VecF Max(VecF a, VecF b) {  // b where NaN
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
FACET_INLINE VecF Min(VecF a, VecF b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
FACET_INLINE VecF Negate(VecF a) {
  const __m256 sign = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MIN));
  return {_mm256_xor_ps(a.lo, sign), _mm256_xor_ps(a.hi, sign)};
}
FACET_INLINE Mask Less(VecF a, VecF b) {
  return {_mm256_castps_si256(_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
          _mm256_castps_si256(_mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
FACET_INLINE Mask AtLeast(VecF a, VecF b) {
  return {_mm256_castps_si256(_mm256_cmp_ps(a.lo, b.lo, _CMP_GE_OQ)),
          _mm256_castps_si256(_mm256_cmp_ps(a.hi, b.hi, _CMP_GE_OQ))};
}
FACET_INLINE VecF Select(Mask m, VecF a, VecF b) {
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(m.lo)),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(m.hi))};
}

FACET_INLINE VecI SetI(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
FACET_INLINE VecI LoadI(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
FACET_INLINE void StoreI(int32_t* p, VecI a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.hi);
}
FACET_INLINE VecI Add(VecI a, VecI b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
FACET_INLINE VecI Sub(VecI a, VecI b) {
  return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
FACET_INLINE VecI And(VecI a, VecI b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
FACET_INLINE VecI Max(VecI a, VecI b) {
  return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
}
FACET_INLINE Mask AtLeast(VecI a, VecI b) {  // not (b > a)
  const __m256i ones = _mm256_set1_epi32(-1);
  return {_mm256_xor_si256(_mm256_cmpgt_epi32(b.lo, a.lo), ones),
          _mm256_xor_si256(_mm256_cmpgt_epi32(b.hi, a.hi), ones)};
}
template <int n>
FACET_INLINE VecI ShiftLeft(VecI a) {
  return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)};
}
template <int n>
FACET_INLINE VecI ShiftRight(VecI a) {  // arithmetic
  return {_mm256_srai_epi32(a.lo, n), _mm256_srai_epi32(a.hi, n)};
}
FACET_INLINE VecF AsFloat(VecI a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
FACET_INLINE VecI AsInt(VecF a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
FACET_INLINE VecF ToFloat(VecI a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
FACET_INLINE VecI ToInt(VecF a) {  // ties to even
  return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)};
}
FACET_INLINE VecI Select(Mask m, VecI a, VecI b) {
  return {_mm256_blendv_epi8(b.lo, a.lo, m.lo), _mm256_blendv_epi8(b.hi, a.hi, m.hi)};
}
// Stores the lanes as bytes. REQUIRES: they fit.
FACET_INLINE void StoreBytes(void* p, VecI a) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm_packs_epi16(_mm256_castsi256_si128(words),
                                                             _mm256_extracti128_si256(words, 1)));
}

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

// Sixteen 64-bit lanes in four registers.
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

#endif  // FACET_KERNELS_CPU_SIMD_H_
