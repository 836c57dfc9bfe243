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

// What a row is multiplied by, from the sums of its squares.
FACET_INLINE VecF InverseNorm(VecF squares, int width, float epsilon) {
  const float mean = Tree(squares) / static_cast<float>(width) + epsilon;
  return Set(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean))));
}

FACET_INLINE VecF Squares(const float* x, int width) {
  VecF squares = Zero();
  ForLanes(
      width, [&](int64_t i) { squares = Fma(Load(x + i), Load(x + i), squares); },
      [&](int64_t i, Mask m) { squares = Fma(Load(x + i, m), Load(x + i, m), squares); });
  return squares;
}

FACET_INLINE void Scale(const float* x, int width, VecF inverse, const float* weight, float* out) {
  ForLanes(
      width, [&](int64_t i) { Store(out + i, Mul(Mul(Load(x + i), inverse), Load(weight + i))); },
      [&](int64_t i, Mask m) {
        Store(out + i, Mul(Mul(Load(x + i, m), inverse), Load(weight + i, m)), m);
      });
}

void Norm(const float* x, int width, const float* weight, float epsilon, float* out) {
  Scale(x, width, InverseNorm(Squares(x, width), width, epsilon), weight, out);
}

// The sums of squares come from the registers that the new residual is stored from.
void ResidualNorm(const ResidualRow& row) {
  VecF squares = Zero();
  if (row.post_weight == nullptr) {
    ForLanes(
        row.width,
        [&](int64_t i) {
          const VecF x = Add(Load(row.residual + i), Load(row.update + i));
          squares = Fma(x, x, squares);
          Store(row.residual + i, x);
        },
        [&](int64_t i, Mask m) {
          const VecF x = Add(Load(row.residual + i, m), Load(row.update + i, m));
          squares = Fma(x, x, squares);
          Store(row.residual + i, x, m);
        });
  } else {
    const VecF inverse = InverseNorm(Squares(row.update, row.width), row.width, row.epsilon);
    ForLanes(
        row.width,
        [&](int64_t i) {
          const VecF normed = Mul(Mul(Load(row.update + i), inverse), Load(row.post_weight + i));
          const VecF x = Add(Load(row.residual + i), normed);
          squares = Fma(x, x, squares);
          Store(row.residual + i, x);
        },
        [&](int64_t i, Mask m) {
          const VecF normed =
              Mul(Mul(Load(row.update + i, m), inverse), Load(row.post_weight + i, m));
          const VecF x = Add(Load(row.residual + i, m), normed);
          squares = Fma(x, x, squares);
          Store(row.residual + i, x, m);
        });
  }
  Scale(row.residual, row.width, InverseNorm(squares, row.width, row.epsilon), row.weight, row.out);
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

// Whole vectors of pairs are scaled and rotated in one pass.
void NormRotate(const HeadVector& head) {
  float* x = head.x;
  const int pairs = head.pairs;
  if (head.weight == nullptr) return Rotate(x, head.cosines, head.sines, pairs);
  const VecF inverse = InverseNorm(Squares(x, head.size), head.size, head.epsilon);
  if (pairs % 16 != 0) {
    Scale(x, head.size, inverse, head.weight, x);
    return Rotate(x, head.cosines, head.sines, pairs);
  }
  for (int i = 0; i < pairs; i += 16) {
    const VecF a = Mul(Mul(Load(x + i), inverse), Load(head.weight + i));
    const VecF b = Mul(Mul(Load(x + pairs + i), inverse), Load(head.weight + pairs + i));
    const Pair y = Rotated({a, b}, Load(head.cosines + i), Load(head.sines + i));
    Store(x + i, y.a);
    Store(x + pairs + i, y.b);
  }
  const int rotated = 2 * pairs;
  Scale(x + rotated, head.size - rotated, inverse, head.weight + rotated, x + rotated);
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
  table->residual_norm = &ResidualNorm;
  table->norm_rotate = &NormRotate;
  table->to_half = &ToHalf;
  table->widen_half = &WidenHalf;
  table->widen_float = &WidenFloat;
}

}  // namespace FACET_ISA
}  // namespace facet
