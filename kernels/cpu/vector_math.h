#ifndef FACET_KERNELS_CPU_VECTOR_MATH_H_
#define FACET_KERNELS_CPU_VECTOR_MATH_H_

// kernels/canonical_math.h for sixteen lanes: the same operations in the same order, so that a
// lane equals the scalar function bit for bit. Compiled once per instruction set, like simd.h.

#include "kernels/canonical_math.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_longs.h"

namespace facet {
namespace FACET_ISA {

FACET_INLINE VecF Exp(VecF x) {
  using namespace canonical;
  x = Max(Set(kExpLowest), x);
  x = Min(Set(kExpHighest), x);
  const VecF t = Fma(x, Set(kLog2E), Set(kRound));
  const VecF n = Sub(t, Set(kRound));
  VecF r = Fma(n, Set(-kLn2High), x);
  r = Fma(n, Set(-kLn2Low), r);
  VecF q = Fma(Set(kExp[4]), r, Set(kExp[3]));
  q = Fma(q, r, Set(kExp[2]));
  q = Fma(q, r, Set(kExp[1]));
  q = Fma(q, r, Set(kExp[0]));
  return TimesPower(Add(Fma(q, Mul(r, r), r), Set(1.0f)), n);
}

FACET_INLINE VecF LogOfParts(VecF e, VecF f) {
  using namespace canonical;
  VecF q = Fma(Set(kLog[8]), f, Set(kLog[7]));
  q = Fma(q, f, Set(kLog[6]));
  q = Fma(q, f, Set(kLog[5]));
  q = Fma(q, f, Set(kLog[4]));
  q = Fma(q, f, Set(kLog[3]));
  q = Fma(q, f, Set(kLog[2]));
  q = Fma(q, f, Set(kLog[1]));
  q = Fma(q, f, Set(kLog[0]));
  q = Fma(q, f, Set(-0.5f));
  const VecF y = Fma(q, Mul(f, f), f);
  return Fma(e, Set(kLn2High), Fma(e, Set(kLn2Low), y));
}

// x as 2^e (1 + f).
FACET_INLINE void LogParts(VecF x, VecF* e, VecF* f) {
  const VecI bits = AsInt(x);
  const VecI exponent =
      ShiftRight<23>(Sub(bits, SetI(static_cast<int32_t>(canonical::kSqrtHalfBits))));
  *e = ToFloat(exponent);
  *f = Sub(AsFloat(Sub(bits, ShiftLeft<23>(exponent))), Set(1.0f));
}

FACET_INLINE VecF Log(VecF x) {
  VecF e, f;
  LogParts(x, &e, &f);
  return LogOfParts(e, f);
}

FACET_INLINE VecL Mix(VecL x) {  // Mix64 of base/prng.h
  x = AddL(x, SetL(0x9e3779b97f4a7c15ull));
  x = MulL(XorL(x, ShiftRightL<30>(x)), SetL(0xbf58476d1ce4e5b9ull));
  x = MulL(XorL(x, ShiftRightL<27>(x)), SetL(0x94d049bb133111ebull));
  return XorL(x, ShiftRightL<31>(x));
}

// The draws of ids, as GumbelOfDraw() takes them.
FACET_INLINE VecI GumbelDraws(uint64_t key, VecI ids) {
  const VecI draw = NarrowL(ShiftRightL<40>(Mix(XorL(SetL(key), WidenL(ids)))));
  return Add(ShiftLeft<1>(draw), SetI(1));
}

FACET_INLINE VecF GumbelOfDraws(VecI odd) {
  using namespace canonical;
  const VecF unit = Set(0x1p-25f);
  VecF e, f;
  LogParts(Mul(ToFloat(odd), unit), &e, &f);
  const Mask near_one = AtLeast(odd, SetI(kNearOne));
  e = Select(near_one, Zero(), e);
  f = Select(near_one, Mul(ToFloat(Sub(odd, SetI(kOneAsDraw))), unit), f);
  return Negate(Log(Negate(LogOfParts(e, f))));
}

FACET_INLINE VecF GumbelCeilings(VecI odd) {
  using namespace canonical;
  const VecF bits = ToFloat(AsInt(ToFloat(Sub(SetI(kOneAsDraw), odd))));
  return Fma(bits, Set(-kCeilingPerBit), Set(kCeilingAtZero));
}

FACET_INLINE VecF SoftCapVector(VecF x, float cap) {
  const VecF one = Set(1.0f);
  const VecF e = Exp(Mul(Set(2.0f), Div(x, Set(cap))));
  return Mul(Set(cap), Sub(one, Div(Set(2.0f), Add(e, one))));
}

FACET_INLINE VecF SiluVector(VecF x) { return Div(x, Add(Set(1.0f), Exp(Negate(x)))); }

FACET_INLINE VecF GeluVector(VecF x) {
  const VecF cubic = Fma(Mul(Set(0.044715f), x), Mul(x, x), x);
  const VecF u = Mul(Set(0.7978845608f), cubic);
  return Div(x, Add(Set(1.0f), Exp(Mul(Set(-2.0f), u))));
}

}  // namespace FACET_ISA
}  // namespace facet

#endif  // FACET_KERNELS_CPU_VECTOR_MATH_H_
