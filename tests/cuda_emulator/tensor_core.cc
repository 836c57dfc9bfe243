#include "tests/cuda_emulator/tensor_core.h"

#include <bit>

#include "base/float16.h"

namespace facet::cuda_emulator {
namespace {

constexpr int kUnits = 8;    // 32-bit units along k
constexpr int kColumns = 8;  // of b and d
constexpr int kB = 4;        // where b begins in an operand

// Unit `unit` of row `row` of a.
uint32_t UnitOfA(const Machine::Operands& operands, int row, int unit) {
  const int lane = row % 8 * 4 + unit % 4;
  return operands[lane][(row / 8) + 2 * (unit / 4)];
}

// Unit `unit` of column `column` of b.
uint32_t UnitOfB(const Machine::Operands& operands, int column, int unit) {
  return operands[column * 4 + unit % 4][kB + unit / 4];
}

// The element of the result that d[i] of a lane is.
int RowOf(int lane, int i) { return lane / 4 + 8 * (i / 2); }
int ColumnOf(int lane, int i) { return lane % 4 * 2 + i % 2; }

float Half(HalfKind kind, uint32_t unit, int which) {
  const auto bits = static_cast<uint16_t>(unit >> (16 * which));
  if (kind == HalfKind::kF16) return HalfToFloat(bits);
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

int32_t SignedByte(uint32_t unit, int which) {
  return static_cast<int8_t>(static_cast<uint8_t>(unit >> (8 * which)));
}

static_assert(kColumns * 4 == kLanes);

}  // namespace

void MmaHalf(HalfKind kind, const Machine::Operands& operands, int lane, float (&d)[4]) {
  for (int i = 0; i < 4; ++i) {
    double sum = 0;
    for (int unit = 0; unit < kUnits; ++unit) {
      const uint32_t a = UnitOfA(operands, RowOf(lane, i), unit);
      const uint32_t b = UnitOfB(operands, ColumnOf(lane, i), unit);
      for (int which = 0; which < 2; ++which) {
        sum += double{Half(kind, a, which)} * double{Half(kind, b, which)};
      }
    }
    d[i] = static_cast<float>(sum + double{d[i]});
  }
}

void MmaS8(const Machine::Operands& operands, int lane, int32_t (&d)[4]) {
  for (int i = 0; i < 4; ++i) {
    auto sum = static_cast<uint32_t>(d[i]);  // wraps, as without .satfinite
    for (int unit = 0; unit < kUnits; ++unit) {
      const uint32_t a = UnitOfA(operands, RowOf(lane, i), unit);
      const uint32_t b = UnitOfB(operands, ColumnOf(lane, i), unit);
      for (int which = 0; which < 4; ++which) {
        sum += static_cast<uint32_t>(SignedByte(a, which) * SignedByte(b, which));
      }
    }
    d[i] = static_cast<int32_t>(sum);
  }
}

}  // namespace facet::cuda_emulator
