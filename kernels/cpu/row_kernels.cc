// Work along one row: quantisation, norms, gates, rotation, conversions.

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_bytes.h"
#include "kernels/cpu/simd_trees.h"
#include "kernels/cpu/vector_math.h"

namespace facet {
namespace FACET_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

// Calls whole(i) for sixteen lanes at a time and rest(i, mask) once for what is left.
template <typename Whole, typename Rest>
FACET_INLINE void ForVectors(int64_t size, const Whole& whole, const Rest& rest) {
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) whole(i);
  if (i < size) rest(i, FirstLanes(static_cast<int>(size - i)));
}

// Calls body(i, lanes) for sixteen lanes at a time, the last time for what is left.
template <typename Body>
FACET_INLINE void ForLanes(int64_t size, const Body& body) {
  ForVectors(
      size, [&](int64_t i) { body(i, AllLanes()); }, [&](int64_t i, Mask m) { body(i, m); });
}

// All ones in the lanes whose block has a scale to divide by, else 0.
FACET_INLINE VecI Quantisable(VecF inverse) {
  const VecF ones = AsFloat(SetI(-1));
  const VecF finite = Select(Less(inverse, Set(kInfinity)), ones, Zero());
  return AsInt(Select(Less(Zero(), inverse), finite, Zero()));
}

// Blocks of a row that are quantised at a time.
constexpr int kQuantizeBlocks = 16;

// Some consecutive blocks of kRows rows. Item i is block i / kRows of row i % kRows, the order in
// which everything lies in a tile; what belongs to an item is worked out for sixteen in one vector.
template <int kRows>
struct QuantizeItems {
  const float* x;  // of the first block in the first row
  int64_t columns;
  int blocks;

  [[gnu::always_inline]] int count() const { return blocks * kRows; }
  // Items beyond the last repeat it.
  [[gnu::always_inline]] const float* Item(int i) const {
    i = i < count() ? i : count() - 1;
    return x + i % kRows * columns + 32 * static_cast<int64_t>(i / kRows);
  }

  // Of the sixteen items from `first` on. As integers, so that NaN counts as larger than everything
  // and reaches the scale.
  [[gnu::always_inline]] VecF Largest(int first) const {
    const VecI magnitude = SetI(INT32_MAX);
    VecI largest[16];
    FACET_UNROLL
    for (int i = 0; i < 16; ++i) {
      const float* item = Item(first + i);
      largest[i] = Max(And(AsInt(Load(item)), magnitude), And(AsInt(Load(item + 16)), magnitude));
    }
    return AsFloat(MaximaOfLanes(largest));
  }

  // Writes block `block` of all rows to `to` and the sums of its halves to `sums`, [kRows][2];
  // `inverses` and `masks` are the block's items'.
  [[gnu::always_inline]] void Round(int block, const float* inverses, const int32_t* masks,
                                    int8_t* to, int32_t* sums) const {
    VecI q[kRows][2];
    FACET_UNROLL
    for (int row = 0; row < kRows; ++row) {
      const float* item = x + row * columns + 32 * static_cast<int64_t>(block);
      const VecI mask = SetI(masks[row]);
      q[row][0] = And(ToInt(Mul(Load(item), Set(inverses[row]))), mask);
      q[row][1] = And(ToInt(Mul(Load(item + 16), Set(inverses[row]))), mask);
    }
    StoreQuads(q, to);
    StoreSums(q, sums);
  }
};

// What sixteen items are multiplied by, and what they are worth.
struct ItemScales {
  float* scales;
  float* inverses;
  int32_t* masks;
};

template <int kRows>
FACET_INLINE void FindScales(const QuantizeItems<kRows>& items, const ItemScales& to) {
  for (int i = 0; i < items.count(); i += 16) {
    const VecF amax = items.Largest(i);
    const VecF inverse = Div(Set(127.0f), amax);
    Store(to.scales + i, Div(amax, Set(127.0f)));
    Store(to.inverses + i, inverse);
    StoreI(to.masks + i, Quantisable(inverse));
  }
}

FACET_INLINE void StoreOffsets(int32_t* to, VecI sum, Mask m) {
  Store(reinterpret_cast<float*>(to), AsFloat(ShiftLeft<7>(Sub(SetI(0), sum))), m);
}

// Up to sixteen items of a tile from item `at` on; `sums`: of their halves.
FACET_INLINE void StoreItems(const ActivationTile& tile, int64_t at, const float* scales,
                             const int32_t* sums, int count) {
  const Mask m = FirstLanes(count);
  const VecF scale = Load(scales);
  VecI sum0, sum1;
  LoadPairs(sums, &sum0, &sum1);
  const VecI sum = Add(sum0, sum1);
  Store(tile.scale + at, scale, m);
  Store(tile.scaled_sum + at, Mul(scale, ToFloat(sum)), m);
  StoreOffsets(tile.offset_sum[0] + at, sum, m);
  StoreOffsets(tile.offset_sum[1] + at, sum0, m);
  StoreOffsets(tile.offset_sum[2] + at, sum1, m);
}

// Blocks [first, first + blocks) of a tile.
template <int kRows>
FACET_INLINE void QuantizeBlocks(const ActivationTile& tile, int first, int blocks) {
  const QuantizeItems<kRows> items{tile.x + 32 * static_cast<int64_t>(first), tile.columns, blocks};
  const int64_t at = static_cast<int64_t>(first) * kRows;
  alignas(64) float scales[kQuantizeBlocks * kRows], inverses[kQuantizeBlocks * kRows];
  alignas(64) int32_t masks[kQuantizeBlocks * kRows], sums[2 * kQuantizeBlocks * kRows];
  FindScales(items, {scales, inverses, masks});
  for (int block = 0; block < blocks; ++block) {
    const int i = block * kRows;
    items.Round(block, inverses + i, masks + i, tile.q + 32 * (at + i), sums + 2 * i);
  }
  for (int i = 0; i < items.count(); i += 16) {
    const int left = items.count() - i;
    StoreItems(tile, at + i, scales + i, sums + 2 * i, left < 16 ? left : 16);
  }
}

template <int kRows>
[[gnu::noinline]] void QuantizeRows(const ActivationTile& tile) {
  const int blocks = static_cast<int>(tile.columns / 32);
  for (int first = 0; first < blocks; first += kQuantizeBlocks) {
    const int left = blocks - first;
    QuantizeBlocks<kRows>(tile, first, left < kQuantizeBlocks ? left : kQuantizeBlocks);
  }
}

void QuantizeTile(const ActivationTile& tile) {
  static_assert(kTileRows == 6);
  switch (tile.rows) {
    case 1:
      return QuantizeRows<1>(tile);
    case 2:
      return QuantizeRows<2>(tile);
    case 3:
      return QuantizeRows<3>(tile);
    case 4:
      return QuantizeRows<4>(tile);
    case 5:
      return QuantizeRows<5>(tile);
    default:
      return QuantizeRows<6>(tile);
  }
}

// One block of all rows of a tile; `x`: [kRows][32].
template <int kRows>
FACET_INLINE void RoundBlock(const ActivationTile& tile, int64_t block, const float* x,
                             const ItemScales& scales) {
  alignas(64) int32_t sums[32] = {};
  const int64_t at = block * kRows;
  QuantizeItems<kRows>{x, 32, 1}.Round(0, scales.inverses, scales.masks, tile.q + 32 * at, sums);
  StoreItems(tile, at, scales.scales, sums, kRows);
}

void RoundBlockOf(const ActivationTile& tile, int64_t block, const float* x,
                  const ItemScales& scales) {
  switch (tile.rows) {
    case 1:
      return RoundBlock<1>(tile, block, x, scales);
    case 2:
      return RoundBlock<2>(tile, block, x, scales);
    case 3:
      return RoundBlock<3>(tile, block, x, scales);
    case 4:
      return RoundBlock<4>(tile, block, x, scales);
    case 5:
      return RoundBlock<5>(tile, block, x, scales);
    default:
      return RoundBlock<6>(tile, block, x, scales);
  }
}

// Tiles whose scales are found together: whole vectors of rows.
constexpr int kBlockTiles = 8;

void QuantizeBlock(const ActivationTile* tiles, int tile_count, int64_t block, const float* x) {
  alignas(64) float scales[kBlockTiles * kTileRows + 16], inverses[kBlockTiles * kTileRows + 16];
  alignas(64) int32_t masks[kBlockTiles * kTileRows + 16];
  for (int first = 0; first < tile_count; first += kBlockTiles) {
    const int end = tile_count < first + kBlockTiles ? tile_count : first + kBlockTiles;
    int rows = 0;
    for (int i = first; i < end; ++i) rows += tiles[i].rows;
    FindScales(QuantizeItems<1>{x, 32, rows}, {scales, inverses, masks});
    ItemScales next = {scales, inverses, masks};
    for (int i = first; i < end; ++i) {
      RoundBlockOf(tiles[i], block, x, next);
      x += 32 * tiles[i].rows;
      next = {next.scales + tiles[i].rows, next.inverses + tiles[i].rows,
              next.masks + tiles[i].rows};
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
  ForLanes(width, [&](int64_t i, auto lanes) {
    squares = Fma(Load(x + i, lanes), Load(x + i, lanes), squares);
  });
  return squares;
}

FACET_INLINE void Scale(const float* x, int width, VecF inverse, const float* weight, float* out) {
  ForLanes(width, [&](int64_t i, auto lanes) {
    Store(out + i, Mul(Mul(Load(x + i, lanes), inverse), Load(weight + i, lanes)), lanes);
  });
}

void Norm(const float* x, int width, const float* weight, float epsilon, float* out) {
  Scale(x, width, InverseNorm(Squares(x, width), width, epsilon), weight, out);
}

// Rows that are normed side by side: the squares of one are a chain in which every addition waits
// for the last.
constexpr int kNormRows = kWideTile ? 3 : 2;

// kRows rows of a residual, and those behind them, which are most likely the next: a step's rows
// have left the second-level cache since they were written, so each pass prefetches.
template <int kRows>
struct NormedRows {
  const ResidualRows rows;  // a copy, which stays in registers: stores might change another's
  const int64_t at;         // of the first
  VecF squares[kRows];
  VecF inverses[kRows];

  [[gnu::always_inline]] int64_t At(int row, int64_t i) const { return at + row * rows.width + i; }
  [[gnu::always_inline]] void PrefetchNext(const float* x, int64_t i) const {
    FACET_UNROLL
    for (int r = kRows; r < 2 * kRows; ++r) _mm_prefetch(x + At(r, i), _MM_HINT_T0);
  }
  [[gnu::always_inline]] void Clear() {
    FACET_UNROLL
    for (int r = 0; r < kRows; ++r) squares[r] = Zero();
  }
  [[gnu::always_inline]] void AddSquare(int row, VecF x) { squares[row] = Fma(x, x, squares[row]); }
  [[gnu::always_inline]] void Invert() {
    FACET_UNROLL
    for (int r = 0; r < kRows; ++r) inverses[r] = InverseNorm(squares[r], rows.width, rows.epsilon);
  }

  [[gnu::always_inline]] void SquareUpdates() {
    Clear();
    ForLanes(rows.width, [&](int64_t i, auto lanes) {
      PrefetchNext(rows.update, i);
      FACET_UNROLL
      for (int r = 0; r < kRows; ++r) AddSquare(r, Load(rows.update + At(r, i), lanes));
    });
    Invert();
  }
  // The sums of squares come from the registers that the new residual is stored from.
  template <bool kNormed>
  [[gnu::always_inline]] void AddUpdates() {
    if constexpr (kNormed) SquareUpdates();
    Clear();
    ForLanes(rows.width, [&](int64_t i, auto lanes) {
      if constexpr (!kNormed) PrefetchNext(rows.update, i);
      PrefetchNext(rows.residual, i);
      FACET_UNROLL
      for (int r = 0; r < kRows; ++r) {
        VecF x = Load(rows.update + At(r, i), lanes);
        if constexpr (kNormed) x = Mul(Mul(x, inverses[r]), Load(rows.post_weight + i, lanes));
        x = Add(Load(rows.residual + At(r, i), lanes), x);
        AddSquare(r, x);
        Store(rows.residual + At(r, i), x, lanes);
      }
    });
    Invert();
  }
  [[gnu::always_inline]] void Write() const {
    ForLanes(rows.width, [&](int64_t i, auto lanes) {
      const VecF weight = Load(rows.weight + i, lanes);
      FACET_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const VecF x = Mul(Mul(Load(rows.residual + At(r, i), lanes), inverses[r]), weight);
        Store(rows.out + At(r, i), x, lanes);
      }
    });
  }
};

template <int kRows>
[[gnu::noinline]] void NormRows(const ResidualRows& rows, int first) {
  NormedRows<kRows> some{rows, int64_t{first} * rows.width, {}, {}};
  if (rows.post_weight == nullptr) {
    some.template AddUpdates<false>();
  } else {
    some.template AddUpdates<true>();
  }
  some.Write();
}

void ResidualNorm(const ResidualRows& rows) {
  int row = 0;
  for (; row + kNormRows <= rows.rows; row += kNormRows) NormRows<kNormRows>(rows, row);
  for (; row < rows.rows; ++row) NormRows<1>(rows, row);
}

void GeluGate(const float* gate, const float* up, int64_t width, float* out) {
  ForLanes(width, [&](int64_t i, auto lanes) {
    Store(out + i, Mul(GeluVector(Load(gate + i, lanes)), Load(up + i, lanes)), lanes);
  });
}

void SiluGate(const float* gate, const float* up, int64_t width, float* out) {
  ForLanes(width, [&](int64_t i, auto lanes) {
    Store(out + i, Mul(SiluVector(Load(gate + i, lanes)), Load(up + i, lanes)), lanes);
  });
}

void SoftCapRow(float* x, int64_t size, float cap) {
  ForLanes(size, [&](int64_t i, auto lanes) {
    Store(x + i, SoftCapVector(Load(x + i, lanes), cap), lanes);
  });
}

struct Pair {
  VecF a, b;
};
FACET_INLINE Pair Rotated(Pair x, VecF c, VecF s) {
  return {Fma(x.a, c, Negate(Mul(x.b, s))), Fma(x.b, c, Mul(x.a, s))};
}

void Rotate(float* x, const float* c, const float* s, int pairs) {
  ForLanes(pairs, [&](int64_t i, auto lanes) {
    const Pair y = Rotated({Load(x + i, lanes), Load(x + pairs + i, lanes)}, Load(c + i, lanes),
                           Load(s + i, lanes));
    Store(x + i, y.a, lanes);
    Store(x + pairs + i, y.b, lanes);
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
  ForVectors(
      size, [&](int64_t i) { StoreHalf(out + i, Load(x + i)); },
      [&](int64_t i, Mask m) {
        alignas(32) uint16_t halves[16];
        StoreHalf(halves, Load(x + i, m));
        __builtin_memcpy(out + i, halves, static_cast<size_t>(size - i) * 2);
      });
}

void WidenHalf(const uint16_t* x, int count, int size, int stride, float* out) {
  for (int row = 0; row < count; ++row, x += size, out += stride) {
    ForVectors(
        size, [&](int64_t i) { Store(out + i, LoadHalf(x + i)); },
        [&](int64_t i, Mask) {
          alignas(32) uint16_t halves[16] = {};
          __builtin_memcpy(halves, x + i, static_cast<size_t>(size - i) * 2);
          Store(out + i, LoadHalf(halves));
        });
  }
}

void WidenFloat(const float* x, int count, int size, int stride, float* out) {
  for (int row = 0; row < count; ++row, x += size, out += stride) {
    ForVectors(
        size, [&](int64_t i) { Store(out + i, Load(x + i)); },
        [&](int64_t i, Mask m) { Store(out + i, Load(x + i, m)); });
  }
}

}  // namespace

void AddRowKernels(KernelTable* table) {
  table->quantize_tile = &QuantizeTile;
  table->quantize_block = &QuantizeBlock;
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
