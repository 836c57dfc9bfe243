#ifndef FACET_KERNELS_CPU_SIMD_H_
#define FACET_KERNELS_CPU_SIMD_H_

// Sixteen lanes, as one AVX-512 register or as two AVX2 registers: sixteen because every canonical
// reduction has sixteen accumulators. Included only by the files that are compiled once per
// instruction set, with FACET_ISA naming the namespace (avx2, avx512 or avx512bf16). Everything
// here is always_inline or has a name of its own per instruction set, so that the linker cannot use
// a copy for AVX-512 anywhere else; for the same reason these files use no inline functions of std.
// Reductions, bytes and 64-bit lanes have headers of their own: simd_trees.h, simd_bytes.h and
// simd_longs.h.

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
// The compiler takes it for changed, and where that is in the program as fixed.
FACET_INLINE void PinRegisters(VecF* a) { asm volatile("" : "+v"(a->v)); }
FACET_INLINE VecF ToFloat(VecI a) { return {_mm512_cvtepi32_ps(a.v)}; }
FACET_INLINE VecI ToInt(VecF a) { return {_mm512_cvtps_epi32(a.v)}; }  // ties to even
FACET_INLINE VecI Select(Mask m, VecI a, VecI b) {
  return {_mm512_mask_blend_epi32(m.v, b.v, a.v)};
}
// y 2^n, rounded once, for y between 1/2 and 2 and integers n from -150 to 128; NaN if y is NaN.
FACET_INLINE VecF TimesPower(VecF y, VecF n) { return {_mm512_scalef_ps(y.v, n.v)}; }
// Thirty-two numbers: those at even and at odd places.
FACET_INLINE void LoadPairs(const int32_t* p, VecI* even, VecI* odd) {
  const __m512i places =
      _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i a = _mm512_loadu_si512(p);
  const __m512i b = _mm512_loadu_si512(p + 16);
  even->v = _mm512_permutex2var_epi32(a, places, b);
  odd->v = _mm512_permutex2var_epi32(a, _mm512_add_epi32(places, _mm512_set1_epi32(1)), b);
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
FACET_INLINE void PinRegisters(VecF* a) { asm volatile("" : "+x"(a->lo), "+x"(a->hi)); }
FACET_INLINE VecF ToFloat(VecI a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
FACET_INLINE VecI ToInt(VecF a) {  // ties to even
  return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)};
}
FACET_INLINE VecI Select(Mask m, VecI a, VecI b) {
  return {_mm256_blendv_epi8(b.lo, a.lo, m.lo), _mm256_blendv_epi8(b.hi, a.hi, m.hi)};
}
// y 2^n, rounded once, for y between 1/2 and 2 and integers n from -150 to 128; NaN if y is NaN. By
// two factors, of which the first is exact.
FACET_INLINE VecF TimesPower(VecF y, VecF n) {
  const VecI exponent = ToInt(n);
  const VecI half = ShiftRight<1>(exponent);
  const VecI bias = SetI(127);
  const VecF scale1 = AsFloat(ShiftLeft<23>(Add(half, bias)));
  const VecF scale2 = AsFloat(ShiftLeft<23>(Add(Sub(exponent, half), bias)));
  return Mul(Mul(y, scale1), scale2);
}
FACET_INLINE void LoadEightPairs(const int32_t* p, __m256i* even, __m256i* odd) {
  const __m256 a = _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  const __m256 b = _mm256_loadu_ps(reinterpret_cast<const float*>(p + 8));
  *even = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), 0xd8);
  *odd = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8);
}
// Thirty-two numbers: those at even and at odd places.
FACET_INLINE void LoadPairs(const int32_t* p, VecI* even, VecI* odd) {
  LoadEightPairs(p, &even->lo, &odd->lo);
  LoadEightPairs(p + 16, &even->hi, &odd->hi);
}

#endif

// In the place of a mask.
struct AllLanes {};
FACET_INLINE VecF Load(const float* p, AllLanes) { return Load(p); }
FACET_INLINE void Store(float* p, VecF a, AllLanes) { Store(p, a); }

}  // namespace FACET_ISA
}  // namespace facet

#endif  // FACET_KERNELS_CPU_SIMD_H_
