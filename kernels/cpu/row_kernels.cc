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

void QuantizeBlock(const float* x, int64_t block, int row, const QuantizedTile& tile) {
  const VecF x0 = Load(x);
  const VecF x1 = Load(x + 16);
  const VecI magnitude = SetI(INT32_MAX);
  // As integers, so that NaN counts as larger than everything and reaches the scale.
  const int32_t largest = MaxLane(Max(And(AsInt(x0), magnitude), And(AsInt(x1), magnitude)));
  const float amax = __builtin_bit_cast(float, largest);
  const float inverse = 127.0f / amax;
  VecI q0 = SetI(0);
  VecI q1 = SetI(0);
  if (inverse > 0 && inverse < kInfinity) {
    q0 = ToInt(Mul(x0, Set(inverse)));
    q1 = ToInt(Mul(x1, Set(inverse)));
  }
  alignas(32) int8_t bytes[32];
  StoreBytes(bytes, q0);
  StoreBytes(bytes + 16, q1);
  int8_t* q = tile.q + (block * 8 * tile.rows + row) * 4;
  for (int group = 0; group < 8; ++group) {
    __builtin_memcpy(q + int64_t{group} * 4 * tile.rows, bytes + 4 * group, 4);
  }
  const int32_t sum0 = SumLanes(q0);
  const int32_t sum1 = SumLanes(q1);
  const float scale = amax / 127.0f;
  tile.scale[block * tile.rows + row] = scale;
  tile.scaled_sum[block * tile.rows + row] = scale * static_cast<float>(sum0 + sum1);
  int32_t* negated_sum = tile.negated_sum + 3 * block * tile.rows + row;
  negated_sum[0] = -(sum0 + sum1);
  negated_sum[tile.rows] = -sum0;
  negated_sum[2 * tile.rows] = -sum1;
}

void QuantizeRow(const float* x, int64_t columns, int row, const QuantizedTile& tile) {
  for (int64_t block = 0; block < columns / 32; ++block) {
    QuantizeBlock(x + 32 * block, block, row, tile);
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
  table->quantize_row = &QuantizeRow;
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
