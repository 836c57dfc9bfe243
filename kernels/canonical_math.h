#ifndef FACET_KERNELS_CANONICAL_MATH_H_
#define FACET_KERNELS_CANONICAL_MATH_H_

// The scalar form of Facet's own elementary functions (kernels/README.md). The vector forms in
// kernels/cpu/vector_math.h repeat every operation in the same order, so a lane equals a scalar.
//
// Everything here is always_inline and made of builtins: these functions are also compiled into
// files that are built for AVX-512, and a linker must never pick such a copy for generic code.

#include <cstdint>

#include "base/prng.h"

namespace facet {

#define FACET_ALWAYS_INLINE [[gnu::always_inline]] inline

namespace canonical {

// exp: x = n ln2 + r, |r| <= ln2 / 2; e^r = 1 + r + r^2 q(r), q a minimax polynomial (relative
// error of e^r below 0.06 ulp before rounding).
inline constexpr float kLog2E = 0x1.715476p+0f;
inline constexpr float kLn2High = 0x1.62e4p-1f;  // few bits: a multiple of it is exact
inline constexpr float kLn2Low = 0x1.7f7d1cp-20f;
inline constexpr float kExpLowest = -104.0f;  // below: 0
inline constexpr float kExpHighest = 89.0f;   // above: infinity
// Adding 1.5 x 2^23 rounds to an integer, which then lies in the low bits.
inline constexpr float kRound = 0x1.8p23f;
inline constexpr float kExp[] = {0x1p-1f, 0x1.55548cp-3f, 0x1.55545cp-5f, 0x1.123cep-7f,
                                 0x1.6db64cp-10f};

// log: x = 2^e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2); log(1 + f) = f - f^2 / 2 + f^3 q(f), q a
// minimax polynomial (relative error below 0.02 ulp before rounding).
inline constexpr uint32_t kSqrtHalfBits = 0x3f3504f3u;
inline constexpr float kLog[] = {0x1.555548p-2f,  -0x1.000006p-2f, 0x1.99a4b6p-3f,
                                 -0x1.555c4ep-3f, 0x1.233768p-3f,  -0x1.fc2208p-4f,
                                 0x1.e6f06cp-4f,  -0x1.de3c14p-4f, 0x1.1457a2p-4f};

// A draw r of 24 bits stands for u = (2 r + 1) 2^-25. From this value of 2 r + 1 on, u is at
// least sqrt(1/2) and its distance to 1 is kept exactly instead of u.
inline constexpr int32_t kNearOne = 0x16a09e7;
inline constexpr int32_t kOneAsDraw = 1 << 25;

// Every Gumbel noise is below this: -log(-log(1 - 2^-25)) = 17.3287.
inline constexpr float kGumbelBound = 17.33f;
// The ceiling of the noise of a draw u: -log(-log u) <= -log(1 - u), and as log2(1 + m) >= m for m
// in [0, 1], log2(1 - u) is at least what the bits of the float read as a number say. The last term
// is far more than all rounding amounts to.
inline constexpr float kCeilingPerBit = 0x1.62e43p-1f * 0x1p-23f;  // ln 2
inline constexpr float kCeilingAtZero = 152 * 0x1.62e43p-1f + 0x1p-10f;

// a * b + c for numbers of bfloat16 a and b, as dot products of bfloat16 round and flush it:
// subnormal inputs count as zeros, and so does a result that would be smaller than the normal
// numbers if it were rounded to as many bits as they have.
FACET_ALWAYS_INLINE float FlushedFma(float a, float b, float c) {
  const auto flushed = [](float x) {
    return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x;
  };
  a = flushed(a);
  b = flushed(b);
  c = flushed(c);
  const float rounded = __builtin_fmaf(a, b, c);
  // The product is exact, and the sum is where it is small enough to matter.
  const double sum = double{a} * double{b} + double{c};
  return __builtin_fabs(sum) < 0x1p-126 - 0x1p-151 ? __builtin_copysignf(0.0f, rounded) : rounded;
}

}  // namespace canonical

// e^x: 0 below -104, infinity above 89, subnormals kept, NaN stays NaN.
FACET_ALWAYS_INLINE float CanonicalExp(float x) {
  using namespace canonical;
  x = kExpLowest > x ? kExpLowest : x;
  x = kExpHighest < x ? kExpHighest : x;
  const float t = __builtin_fmaf(x, kLog2E, kRound);
  const float n = t - kRound;
  float r = __builtin_fmaf(n, -kLn2High, x);
  r = __builtin_fmaf(n, -kLn2Low, r);
  float q = __builtin_fmaf(kExp[4], r, kExp[3]);
  q = __builtin_fmaf(q, r, kExp[2]);
  q = __builtin_fmaf(q, r, kExp[1]);
  q = __builtin_fmaf(q, r, kExp[0]);
  const float y = __builtin_fmaf(q, r * r, r) + 1.0f;
  // 2^n in two factors, so that subnormal results are rounded once and large ones overflow.
  const uint32_t exponent = __builtin_bit_cast(uint32_t, t) - __builtin_bit_cast(uint32_t, kRound);
  const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(exponent) >> 1);
  const float scale1 = __builtin_bit_cast(float, (half + 127u) << 23);
  const float scale2 = __builtin_bit_cast(float, (exponent - half + 127u) << 23);
  return y * scale1 * scale2;
}

// log of 2^e (1 + f), f in [sqrt(1/2) - 1, sqrt(2) - 1).
FACET_ALWAYS_INLINE float CanonicalLogOfParts(float e, float f) {
  using namespace canonical;
  float q = __builtin_fmaf(kLog[8], f, kLog[7]);
  q = __builtin_fmaf(q, f, kLog[6]);
  q = __builtin_fmaf(q, f, kLog[5]);
  q = __builtin_fmaf(q, f, kLog[4]);
  q = __builtin_fmaf(q, f, kLog[3]);
  q = __builtin_fmaf(q, f, kLog[2]);
  q = __builtin_fmaf(q, f, kLog[1]);
  q = __builtin_fmaf(q, f, kLog[0]);
  q = __builtin_fmaf(q, f, -0.5f);
  const float y = __builtin_fmaf(q, f * f, f);
  return __builtin_fmaf(e, kLn2High, __builtin_fmaf(e, kLn2Low, y));
}

// Natural logarithm. REQUIRES: x is positive, normal and finite.
FACET_ALWAYS_INLINE float CanonicalLog(float x) {
  using namespace canonical;
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const int32_t e = static_cast<int32_t>(bits - kSqrtHalfBits) >> 23;
  const float m = __builtin_bit_cast(float, bits - (static_cast<uint32_t>(e) << 23));
  return CanonicalLogOfParts(static_cast<float>(e), m - 1.0f);
}

// -log(-log(u)), u = odd 2^-25 for an odd number below 2^25. float(u) would be 1 for the largest,
// so near 1 the logarithm is taken of the exact u - 1.
FACET_ALWAYS_INLINE float GumbelOfDraw(int32_t odd) {
  using namespace canonical;
  const float log_u = odd >= kNearOne
                          ? CanonicalLogOfParts(0, static_cast<float>(odd - kOneAsDraw) * 0x1p-25f)
                          : CanonicalLog(static_cast<float>(odd) * 0x1p-25f);
  return -CanonicalLog(-log_u);
}

// At least GumbelOfDraw(odd), for little.
FACET_ALWAYS_INLINE float GumbelCeiling(int32_t odd) {
  using namespace canonical;
  const float rest = static_cast<float>(kOneAsDraw - odd);
  int32_t bits;
  __builtin_memcpy(&bits, &rest, sizeof(bits));
  return __builtin_fmaf(static_cast<float>(bits), -kCeilingPerBit, kCeilingAtZero);
}

// The noise of the draw r = Mix64(key ^ id) >> 40, u = (r + 1/2) 2^-24.
FACET_ALWAYS_INLINE float GumbelNoise(uint64_t key, uint32_t id) {
  return GumbelOfDraw(static_cast<int32_t>(Mix64(key ^ id) >> 40) * 2 + 1);
}

// The sum of 16 accumulators in the one order every reduction inside a row uses.
FACET_ALWAYS_INLINE float Tree16(const float* a) {
  float b[8];
  for (int j = 0; j < 8; ++j) b[j] = a[j] + a[j + 8];
  float c[4];
  for (int j = 0; j < 4; ++j) c[j] = b[j] + b[j + 4];
  return (c[0] + c[2]) + (c[1] + c[3]);
}

FACET_ALWAYS_INLINE float Silu(float x) { return x / (1.0f + CanonicalExp(-x)); }

FACET_ALWAYS_INLINE float GeluTanh(float x) {
  const float u = 0.7978845608f * __builtin_fmaf(0.044715f * x, x * x, x);
  return x / (1.0f + CanonicalExp(-2.0f * u));
}

FACET_ALWAYS_INLINE float SoftCapped(float x, float cap) {
  return cap * (1.0f - 2.0f / (CanonicalExp(2.0f * (x / cap)) + 1.0f));
}

}  // namespace facet

#endif  // FACET_KERNELS_CANONICAL_MATH_H_
