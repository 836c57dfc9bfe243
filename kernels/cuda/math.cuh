#ifndef FACET_KERNELS_CUDA_MATH_CUH_
#define FACET_KERNELS_CUDA_MATH_CUH_

// The device form of kernels/canonical_math.h: the same operations in the same order, so that a
// lane equals the scalar form bit for bit.

#include "kernels/canonical_math.h"
#include "kernels/cuda/language.cuh"

namespace facet::cuda {

__device__ __forceinline__ float SubRn(float a, float b) { return AddRn(a, -b); }

// As products of bfloat16 read their activations; NaN stays NaN.
__device__ __forceinline__ float RoundToBf16(float x) {
  return x != x ? x : Bf16ToFloat(FloatToBf16(x));
}

__device__ __forceinline__ float Exp(float x) {
  constexpr float kE0 = canonical::kExp[0], kE1 = canonical::kExp[1], kE2 = canonical::kExp[2];
  constexpr float kE3 = canonical::kExp[3], kE4 = canonical::kExp[4];
  x = canonical::kExpLowest > x ? canonical::kExpLowest : x;
  x = canonical::kExpHighest < x ? canonical::kExpHighest : x;
  const float t = FmaRn(x, canonical::kLog2E, canonical::kRound);
  const float n = SubRn(t, canonical::kRound);
  float r = FmaRn(n, -canonical::kLn2High, x);
  r = FmaRn(n, -canonical::kLn2Low, r);
  float q = FmaRn(kE4, r, kE3);
  q = FmaRn(q, r, kE2);
  q = FmaRn(q, r, kE1);
  q = FmaRn(q, r, kE0);
  const float y = AddRn(FmaRn(q, MulRn(r, r), r), 1.0f);
  const uint32_t exponent = FloatBits(t) - FloatBits(canonical::kRound);
  const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(exponent) >> 1);
  const float scale1 = BitsFloat((half + 127u) << 23);
  const float scale2 = BitsFloat((exponent - half + 127u) << 23);
  return MulRn(MulRn(y, scale1), scale2);
}

// log of 2^e (1 + f).
__device__ __forceinline__ float LogOfParts(float e, float f) {
  constexpr float kL0 = canonical::kLog[0], kL1 = canonical::kLog[1], kL2 = canonical::kLog[2];
  constexpr float kL3 = canonical::kLog[3], kL4 = canonical::kLog[4], kL5 = canonical::kLog[5];
  constexpr float kL6 = canonical::kLog[6], kL7 = canonical::kLog[7], kL8 = canonical::kLog[8];
  float q = FmaRn(kL8, f, kL7);
  q = FmaRn(q, f, kL6);
  q = FmaRn(q, f, kL5);
  q = FmaRn(q, f, kL4);
  q = FmaRn(q, f, kL3);
  q = FmaRn(q, f, kL2);
  q = FmaRn(q, f, kL1);
  q = FmaRn(q, f, kL0);
  q = FmaRn(q, f, -0.5f);
  const float y = FmaRn(q, MulRn(f, f), f);
  return FmaRn(e, canonical::kLn2High, FmaRn(e, canonical::kLn2Low, y));
}

__device__ __forceinline__ float Log(float x) {
  const uint32_t bits = FloatBits(x);
  const int32_t e = static_cast<int32_t>(bits - canonical::kSqrtHalfBits) >> 23;
  const float m = BitsFloat(bits - (static_cast<uint32_t>(e) << 23));
  return LogOfParts(static_cast<float>(e), SubRn(m, 1.0f));
}

__device__ __forceinline__ float Gumbel(uint64_t key, uint32_t id) {
  const int32_t odd = static_cast<int32_t>(Mix64(key ^ id) >> 40) * 2 + 1;
  const float log_u =
      odd >= canonical::kNearOne
          ? LogOfParts(0, MulRn(static_cast<float>(odd - canonical::kOneAsDraw), 0x1p-25f))
          : Log(MulRn(static_cast<float>(odd), 0x1p-25f));
  return -Log(-log_u);
}

__device__ __forceinline__ float SiluOf(float x) { return DivRn(x, AddRn(1.0f, Exp(-x))); }

__device__ __forceinline__ float GeluTanhOf(float x) {
  const float u = MulRn(0.7978845608f, FmaRn(MulRn(0.044715f, x), MulRn(x, x), x));
  return DivRn(x, AddRn(1.0f, Exp(MulRn(-2.0f, u))));
}

__device__ __forceinline__ float SoftCappedOf(float x, float cap) {
  const float e = Exp(MulRn(2.0f, DivRn(x, cap)));
  return MulRn(cap, SubRn(1.0f, DivRn(2.0f, AddRn(e, 1.0f))));
}

// Tree16 of the accumulators of 16 neighbouring lanes, the same in all of them. The warp calls it;
// its two halves are two trees.
__device__ __forceinline__ float TreeOfLanes(float a) {
  a = AddRn(a, ShuffleXor(a, 8));
  a = AddRn(a, ShuffleXor(a, 4));
  a = AddRn(a, ShuffleXor(a, 2));
  return AddRn(a, ShuffleXor(a, 1));
}

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_MATH_CUH_
