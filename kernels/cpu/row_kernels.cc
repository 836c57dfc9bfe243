// Work along one row: quantisation, norms, gates, rotation, conversions.

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/vector_math.h"

namespace facet {
namespace FACET_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

// Calls body(i, mask or nothing) for sixteen lanes at a time and once for what is left.
template <typename Whole, typename Rest>
FACET_INLINE void ForLanes(int64_t size, const Whole& whole, const Rest& rest) {
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) whole(i);
  if (i < size) rest(i, FirstLanes(static_cast<int>(size - i)));
}

// All ones in the lanes whose block has a scale to divide by, else 0.
FACET_INLINE VecI Quantisable(VecF inverse) {
  const VecF ones = AsFloat(SetI(-1));
  const VecF finite = Select(Less(inverse, Set(kInfinity)), ones, Zero());
  return AsInt(Select(Less(Zero(), inverse), finite, Zero()));
}

// Sixteen consecutive blocks of a row at a time: what belongs to a block is worked out for all of
// them in one vector, lane i being block i.
struct QuantizeItems {
  const float* x;  // of the first block
  int count;       // lanes beyond repeat the last one

  [[gnu::always_inline]] const float* Block(int i) const {
    return x + 32 * (i < count ? i : count - 1);
  }

  // As integers, so that NaN counts as larger than everything and reaches the scale.
  [[gnu::always_inline]] VecF Largest() const {
    const VecI magnitude = SetI(INT32_MAX);
    VecI largest[16];
    FACET_UNROLL
    for (int i = 0; i < 16; ++i) {
      // The sixteen blocks after these: rows lie one after the other.
      _mm_prefetch(x + 512 + 32 * i, _MM_HINT_T0);
      _mm_prefetch(x + 528 + 32 * i, _MM_HINT_T0);
      largest[i] =
          Max(And(AsInt(Load(Block(i))), magnitude), And(AsInt(Load(Block(i) + 16)), magnitude));
    }
    return AsFloat(MaximaOfLanes(largest));
  }

  // The quantised halves of every block.
  [[gnu::always_inline]] void Round(VecF inverse, VecI (&q0)[16], VecI (&q1)[16]) const {
    alignas(64) float inverses[16];
    alignas(64) int32_t masks[16];
    Store(inverses, inverse);
    StoreI(masks, Quantisable(inverse));
    FACET_UNROLL
    for (int i = 0; i < 16; ++i) {
      const VecI mask = SetI(masks[i]);
      q0[i] = And(ToInt(Mul(Load(Block(i)), Set(inverses[i]))), mask);
      q1[i] = And(ToInt(Mul(Load(Block(i) + 16), Set(inverses[i]))), mask);
    }
  }

  // To a tile of `rows` rows, from the first block's place on.
  [[gnu::always_inline]] void PutBytes(const VecI (&q0)[16], const VecI (&q1)[16], int rows,
                                       int8_t* to) const {
    alignas(64) int32_t groups[16][8];
    FACET_UNROLL
    for (int i = 0; i < 16; ++i) {
      StoreBytes(groups[i], q0[i]);
      StoreBytes(groups[i] + 4, q1[i]);
    }
    const int64_t stride = int64_t{4} * rows;
    for (int i = 0; i < count; ++i, to += 8 * stride) {
      FACET_UNROLL
      for (int group = 0; group < 8; ++group) {
        __builtin_memcpy(to + group * stride, &groups[i][group], 4);
      }
    }
  }

  template <typename T>
  [[gnu::always_inline]] void PutLanes(VecF lanes, int rows, T* to) const {
    alignas(64) T values[16];
    Store(reinterpret_cast<float*>(values), lanes);
    for (int i = 0; i < count; ++i) to[int64_t{i} * rows] = values[i];
  }
  [[gnu::always_inline]] void PutSum(VecI sum, int rows, int32_t* to) const {
    PutLanes(AsFloat(ShiftLeft<7>(Sub(SetI(0), sum))), rows, to);
  }
};

void QuantizeTile(const ActivationTile& tile) {
  const int rows = tile.rows;
  const int blocks = static_cast<int>(tile.columns / 32);
  for (int row = 0; row < rows; ++row) {
    for (int block = 0; block < blocks; block += 16) {
      const QuantizeItems some{tile.x + row * tile.columns + 32 * int64_t{block},
                               blocks - block < 16 ? blocks - block : 16};
      const int64_t at = int64_t{block} * rows + row;
      const VecF amax = some.Largest();
      const VecF scale = Div(amax, Set(127.0f));
      VecI q0[16], q1[16];
      some.Round(Div(Set(127.0f), amax), q0, q1);
      some.PutBytes(q0, q1, rows, tile.q + 4 * (8 * int64_t{block} * rows + row));
      const VecI sum0 = SumsOfLanes(q0);
      const VecI sum1 = SumsOfLanes(q1);
      const VecI sum = Add(sum0, sum1);
      some.PutLanes(scale, rows, tile.scale + at);
      some.PutLanes(Mul(scale, ToFloat(sum)), rows, tile.scaled_sum + at);
      some.PutSum(sum, rows, tile.offset_sum[0] + at);
      some.PutSum(sum0, rows, tile.offset_sum[1] + at);
      some.PutSum(sum1, rows, tile.offset_sum[2] + at);
    }
  }
}

void Norm(const float* x, int width, const float* weight, float epsilon, float* out) {
  VecF squares = Zero();
  ForLanes(
      width, [&](int64_t i) { squares = Fma(Load(x + i), Load(x + i), squares); },
      [&](int64_t i, Mask m) { squares = Fma(Load(x + i, m), Load(x + i, m), squares); });
  const float mean = Tree(squares) / static_cast<float>(width) + epsilon;
  const VecF inverse = Set(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean))));
  ForLanes(
      width, [&](int64_t i) { Store(out + i, Mul(Mul(Load(x + i), inverse), Load(weight + i))); },
      [&](int64_t i, Mask m) {
        Store(out + i, Mul(Mul(Load(x + i, m), inverse), Load(weight + i, m)), m);
      });
}

void GeluGate(const float* gate, const float* up, int64_t width, float* out) {
  ForLanes(
      width, [&](int64_t i) { Store(out + i, Mul(GeluVector(Load(gate + i)), Load(up + i))); },
      [&](int64_t i, Mask m) {
        Store(out + i, Mul(GeluVector(Load(gate + i, m)), Load(up + i, m)), m);
      });
}

void SiluGate(const float* gate, const float* up, int64_t width, float* out) {
  ForLanes(
      width, [&](int64_t i) { Store(out + i, Mul(SiluVector(Load(gate + i)), Load(up + i))); },
      [&](int64_t i, Mask m) {
        Store(out + i, Mul(SiluVector(Load(gate + i, m)), Load(up + i, m)), m);
      });
}

void SoftCapRow(float* x, int64_t size, float cap) {
  ForLanes(
      size, [&](int64_t i) { Store(x + i, SoftCapVector(Load(x + i), cap)); },
      [&](int64_t i, Mask m) { Store(x + i, SoftCapVector(Load(x + i, m), cap), m); });
}

void Accumulate(float* a, const float* b, int64_t size) {
  ForLanes(
      size, [&](int64_t i) { Store(a + i, Add(Load(a + i), Load(b + i))); },
      [&](int64_t i, Mask m) { Store(a + i, Add(Load(a + i, m), Load(b + i, m)), m); });
}

struct Pair {
  VecF a, b;
};
FACET_INLINE Pair Rotated(Pair x, VecF c, VecF s) {
  return {Fma(x.a, c, Negate(Mul(x.b, s))), Fma(x.b, c, Mul(x.a, s))};
}

void Rotate(float* x, const float* c, const float* s, int pairs) {
  ForLanes(
      pairs,
      [&](int64_t i) {
        const Pair y = Rotated({Load(x + i), Load(x + pairs + i)}, Load(c + i), Load(s + i));
        Store(x + i, y.a);
        Store(x + pairs + i, y.b);
      },
      [&](int64_t i, Mask m) {
        const Pair y =
            Rotated({Load(x + i, m), Load(x + pairs + i, m)}, Load(c + i, m), Load(s + i, m));
        Store(x + i, y.a, m);
        Store(x + pairs + i, y.b, m);
      });
}

void ToHalf(const float* x, int64_t size, uint16_t* out) {
  ForLanes(
      size, [&](int64_t i) { StoreHalf(out + i, Load(x + i)); },
      [&](int64_t i, Mask m) {
        alignas(32) uint16_t halves[16];
        StoreHalf(halves, Load(x + i, m));
        __builtin_memcpy(out + i, halves, static_cast<size_t>(size - i) * 2);
      });
}

void WidenHalf(const uint16_t* x, int count, int size, int padded, float* out) {
  for (int row = 0; row < count; ++row, x += size, out += padded) {
    ForLanes(
        size, [&](int64_t i) { Store(out + i, LoadHalf(x + i)); },
        [&](int64_t i, Mask) {
          alignas(32) uint16_t halves[16] = {};
          __builtin_memcpy(halves, x + i, static_cast<size_t>(size - i) * 2);
          Store(out + i, LoadHalf(halves));
        });
  }
}

void WidenFloat(const float* x, int count, int size, int padded, float* out) {
  for (int row = 0; row < count; ++row, x += size, out += padded) {
    ForLanes(
        size, [&](int64_t i) { Store(out + i, Load(x + i)); },
        [&](int64_t i, Mask m) { Store(out + i, Load(x + i, m)); });
  }
}

}  // namespace

void AddRowKernels(KernelTable* table) {
  table->quantize_tile = &QuantizeTile;
  table->norm = &Norm;
  table->gelu_gate = &GeluGate;
  table->silu_gate = &SiluGate;
  table->soft_cap = &SoftCapRow;
  table->accumulate = &Accumulate;
  table->rotate = &Rotate;
  table->to_half = &ToHalf;
  table->widen_half = &WidenHalf;
  table->widen_float = &WidenFloat;
}

}  // namespace FACET_ISA
}  // namespace facet
