// Passes over a row of logits.

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_trees.h"
#include "kernels/cpu/vector_math.h"

namespace facet {
namespace FACET_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

bool ScaleLogits(const float* x, int64_t size, float factor, float* out) {
  const VecF limit = Set(kInfinity);
  uint32_t usable = 0xffff;  // lanes that were below infinity throughout
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) {
    const VecF raw = Load(x + i);
    const VecF scaled = Mul(raw, Set(factor));
    usable &= Bits(Less(raw, limit)) & Bits(Less(scaled, limit));
    Store(out + i, scaled);
  }
  if (i < size) {
    const Mask m = FirstLanes(static_cast<int>(size - i));
    const VecF raw = Load(x + i, m);
    const VecF scaled = Mul(raw, Set(factor));
    usable &= Bits(Less(raw, limit)) & Bits(Less(scaled, limit));
    Store(out + i, scaled, m);
  }
  return usable == 0xffff;
}

float MaxOf(const float* x, int64_t size) {
  VecF max = Set(-kInfinity);
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) max = Max(max, Load(x + i));
  if (i < size) {
    const Mask m = FirstLanes(static_cast<int>(size - i));
    max = Max(max, Select(m, Load(x + i, m), Set(-kInfinity)));
  }
  return MaxLane(max);
}

void SumExp(const float* x, int64_t size, float max, float* a) {
  const VecF shift = Set(max);
  VecF sums = Load(a);
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) sums = Add(sums, Exp(Sub(Load(x + i), shift)));
  if (i < size) {
    const Mask m = FirstLanes(static_cast<int>(size - i));
    sums = Add(sums, Select(m, Exp(Sub(Load(x + i, m), shift)), Zero()));
  }
  Store(a, sums);
}

int Select(const float* x, int size, float threshold, int32_t* indices) {
  const VecF limit = Set(threshold);
  int count = 0;
  for (int i = 0; i < size; i += 16) {
    const Mask m = FirstLanes(size - i < 16 ? size - i : 16);
    uint32_t bits = Bits(AtLeast(Load(x + i, m), limit)) & Bits(m);
    for (; bits != 0; bits &= bits - 1) indices[count++] = i + __builtin_ctz(bits);
  }
  return count;
}

void GumbelOrders(const float* x, int size, uint64_t key, uint32_t first_id, float threshold,
                  float* order) {
  alignas(64) static constexpr int32_t kLanes[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                     8, 9, 10, 11, 12, 13, 14, 15};
  const VecF limit = Set(threshold);
  const VecF bound = Set(canonical::kGumbelBound);
  for (int i = 0; i < size; i += 16) {
    const Mask m = FirstLanes(size - i < 16 ? size - i : 16);
    const VecF logits = Load(x + i, m);
    VecF result = Set(-kInfinity);
    // Rounding is monotonic: a sum with less noise cannot reach what this one does not.
    if ((Bits(AtLeast(Add(logits, bound), limit)) & Bits(m)) != 0) {
      const VecI ids = Add(LoadI(kLanes), SetI(static_cast<int32_t>(first_id) + i));
      const VecI draws = GumbelDraws(key, ids);
      // Few draws are large enough to be worth two logarithms.
      if ((Bits(AtLeast(Add(logits, GumbelCeilings(draws)), limit)) & Bits(m)) != 0) {
        result = Add(logits, GumbelOfDraws(draws));
      }
    }
    Store(order + i, result, m);
  }
}

}  // namespace

void AddVocabularyKernels(KernelTable* table) {
  table->scale_logits = &ScaleLogits;
  table->max = &MaxOf;
  table->sum_exp = &SumExp;
  table->select = &Select;
  table->gumbel = &GumbelOrders;
}

}  // namespace FACET_ISA
}  // namespace facet
