#include "checkpoint/block_formats.h"

#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/float16.h"

// How each block's bytes become values. All integer factors are small enough that the products
// d * scale * value are exact or rounded once; `x * n + m` rounds the product and the sum apart
// (the build forbids contraction), as ggml's reference loops do.

namespace facet {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF data is read in place");

using Byte = uint8_t;

uint16_t Load16(const Byte* bytes) {
  uint16_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

uint32_t Load32(const Byte* bytes) {
  uint32_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

float LoadHalf(const Byte* bytes) { return HalfToFloat(Load16(bytes)); }

int Signed(Byte byte) { return static_cast<int8_t>(byte); }

// Low nibble of qs[i] is element i, high nibble element 16 + i: split, not interleaved.
int SplitNibble(const Byte* qs, int i) { return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4; }

// IQ4's sixteen values, denser around zero than a uniform grid.
constexpr int kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                1,    13,   25,  38,  53,  69,  89,  113};

void BlockF32(const Byte* block, float* out) { *out = std::bit_cast<float>(Load32(block)); }
void BlockF16(const Byte* block, float* out) { *out = LoadHalf(block); }
void BlockBF16(const Byte* block, float* out) { *out = BFloat16ToFloat(Load16(block)); }

// d f16, qs[16]
void BlockQ4_0(const Byte* block, float* out) {
  const float d = LoadHalf(block);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(SplitNibble(block + 2, i) - 8) * d;
}

// d f16, m f16, qs[16]
void BlockQ4_1(const Byte* block, float* out) {
  const float d = LoadHalf(block);
  const float m = LoadHalf(block + 2);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(SplitNibble(block + 4, i)) * d + m;
}

// The fifth bit of element i is bit i of qh.
int FiveBits(uint32_t qh, const Byte* qs, int i) {
  return SplitNibble(qs, i) | static_cast<int>(((qh >> i) & 1) << 4);
}

// d f16, qh u32, qs[16]
void BlockQ5_0(const Byte* block, float* out) {
  const float d = LoadHalf(block);
  const uint32_t qh = Load32(block + 2);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(FiveBits(qh, block + 6, i) - 16) * d;
}

// d f16, m f16, qh u32, qs[16]
void BlockQ5_1(const Byte* block, float* out) {
  const float d = LoadHalf(block);
  const float m = LoadHalf(block + 2);
  const uint32_t qh = Load32(block + 4);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(FiveBits(qh, block + 8, i)) * d + m;
}

// d f16, qs i8[32]
void BlockQ8_0(const Byte* block, float* out) {
  const float d = LoadHalf(block);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(Signed(block[2 + i])) * d;
}

// d f16, qs[16]
void BlockIQ4_NL(const Byte* block, float* out) {
  const float d = LoadHalf(block);
  for (int i = 0; i < 32; ++i) {
    out[i] = d * static_cast<float>(kIq4Values[SplitNibble(block + 2, i)]);
  }
}

// The two-bit field of element e in Q2_K's and Q3_K's qs[64]: four passes of 32 over each half.
int TwoBits(const Byte* qs, int e) {
  return (qs[32 * (e / 128) + e % 32] >> (2 * ((e % 128) / 32))) & 3;
}

// scales[16] (scale | min << 4), qs[64], d f16, dmin f16
void BlockQ2_K(const Byte* block, float* out) {
  const float d = LoadHalf(block + 80);
  const float dmin = LoadHalf(block + 82);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(block[group] & 15);
    const float min = dmin * static_cast<float>(block[group] >> 4);
    for (int e = 16 * group; e < 16 * group + 16; ++e) {
      out[e] = scale * static_cast<float>(TwoBits(block + 16, e)) - min;
    }
  }
}

// hmask[32], qs[64], scales[12] (sixteen 6-bit values), d f16
void BlockQ3_K(const Byte* block, float* out) {
  const Byte* scales = block + 96;
  const float d = LoadHalf(block + 108);
  for (int group = 0; group < 16; ++group) {
    const int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
    const int high = (scales[8 + group % 4] >> (2 * (group / 4))) & 3;
    const float scale = d * static_cast<float>((low | high << 4) - 32);
    for (int e = 16 * group; e < 16 * group + 16; ++e) {
      const int set = (block[e % 32] >> (e / 32)) & 1;
      out[e] = scale * static_cast<float>(TwoBits(block + 32, e) - (set ? 0 : 4));
    }
  }
}

struct ScaleMin {
  int scale;
  int min;
};

// The eight (scale, min) pairs of six bits each that Q4_K and Q5_K keep in twelve bytes.
ScaleMin SixBitPair(const Byte* s, int group) {
  if (group < 4) return {s[group] & 63, s[group + 4] & 63};
  return {(s[group + 4] & 15) | ((s[group - 4] >> 6) << 4),
          (s[group + 4] >> 4) | ((s[group] >> 6) << 4)};
}

// d f16, dmin f16, scales[12], then qh[32] in Q5_K only, then qs[128]
template <bool kFifthBit>
void BlockQ45_K(const Byte* block, float* out) {
  const float d = LoadHalf(block);
  const float dmin = LoadHalf(block + 2);
  const Byte* qh = block + 16;
  const Byte* qs = kFifthBit ? block + 48 : block + 16;
  for (int group = 0; group < 8; ++group) {
    const ScaleMin pair = SixBitPair(block + 4, group);
    const float scale = d * static_cast<float>(pair.scale);
    const float min = dmin * static_cast<float>(pair.min);
    for (int i = 0; i < 32; ++i) {
      int value = (qs[32 * (group / 2) + i] >> (4 * (group % 2))) & 15;
      if (kFifthBit) value |= ((qh[i] >> group) & 1) << 4;
      out[32 * group + i] = scale * static_cast<float>(value) - min;
    }
  }
}

// ql[128], qh[64], scales i8[16], d f16
void BlockQ6_K(const Byte* block, float* out) {
  const Byte* qh = block + 128;
  const float d = LoadHalf(block + 208);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(Signed(block[192 + group]));
    for (int e = 16 * group; e < 16 * group + 16; ++e) {
      const int half = e / 128;
      const int pass = (e % 128) / 32;
      const int low = (block[64 * half + 32 * (pass & 1) + e % 32] >> (4 * (pass / 2))) & 15;
      const int high = (qh[32 * half + e % 32] >> (2 * pass)) & 3;
      out[e] = scale * static_cast<float>((low | high << 4) - 32);
    }
  }
}

// d f16, scales_h u16, scales_l[4], qs[128]
void BlockIQ4_XS(const Byte* block, float* out) {
  const float d = LoadHalf(block);
  const uint32_t high_bits = Load16(block + 2);
  for (int group = 0; group < 8; ++group) {
    const int low = (block[4 + group / 2] >> (4 * (group % 2))) & 15;
    const int high = static_cast<int>((high_bits >> (2 * group)) & 3);
    const float scale = d * static_cast<float>((low | high << 4) - 32);
    const Byte* qs = &block[8 + 16 * group];
    for (int i = 0; i < 32; ++i) {
      out[32 * group + i] = scale * static_cast<float>(kIq4Values[SplitNibble(qs, i)]);
    }
  }
}

using RowReader = void (*)(const Byte* source, int64_t blocks, float* out);

template <int kElements, int kBytes, void (*kBlock)(const Byte*, float*)>
void ReadRow(const Byte* source, int64_t blocks, float* out) {
  for (int64_t i = 0; i < blocks; ++i) kBlock(source + i * kBytes, out + i * kElements);
}

struct Entry {
  TensorType type;
  BlockFormat format;
  RowReader read;
};

template <int kElements, int kBytes, void (*kBlock)(const Byte*, float*)>
constexpr Entry MakeEntry(TensorType type, std::string_view name) {
  return {type, {name, kElements, kBytes}, &ReadRow<kElements, kBytes, kBlock>};
}

constexpr Entry kEntries[] = {
    MakeEntry<1, 4, BlockF32>(TensorType::kF32, "F32"),
    MakeEntry<1, 2, BlockF16>(TensorType::kF16, "F16"),
    MakeEntry<32, 18, BlockQ4_0>(TensorType::kQ4_0, "Q4_0"),
    MakeEntry<32, 20, BlockQ4_1>(TensorType::kQ4_1, "Q4_1"),
    MakeEntry<32, 22, BlockQ5_0>(TensorType::kQ5_0, "Q5_0"),
    MakeEntry<32, 24, BlockQ5_1>(TensorType::kQ5_1, "Q5_1"),
    MakeEntry<32, 34, BlockQ8_0>(TensorType::kQ8_0, "Q8_0"),
    MakeEntry<256, 84, BlockQ2_K>(TensorType::kQ2_K, "Q2_K"),
    MakeEntry<256, 110, BlockQ3_K>(TensorType::kQ3_K, "Q3_K"),
    MakeEntry<256, 144, BlockQ45_K<false>>(TensorType::kQ4_K, "Q4_K"),
    MakeEntry<256, 176, BlockQ45_K<true>>(TensorType::kQ5_K, "Q5_K"),
    MakeEntry<256, 210, BlockQ6_K>(TensorType::kQ6_K, "Q6_K"),
    MakeEntry<32, 18, BlockIQ4_NL>(TensorType::kIQ4_NL, "IQ4_NL"),
    MakeEntry<256, 136, BlockIQ4_XS>(TensorType::kIQ4_XS, "IQ4_XS"),
    MakeEntry<1, 2, BlockBF16>(TensorType::kBF16, "BF16"),
};

const Entry* FindEntry(TensorType type) {
  for (const Entry& entry : kEntries) {
    if (entry.type == type) return &entry;
  }
  return nullptr;
}

const Entry& EntryOf(TensorType type) {
  const Entry* entry = FindEntry(type);
  FACET_CHECK(entry != nullptr, "tensor type {}", static_cast<uint32_t>(type));
  return *entry;
}

int64_t WholeBlocks(const BlockFormat& format, int64_t elements) {
  FACET_CHECK(elements >= 0 && elements % format.elements == 0, "{} elements of {}", elements,
              format.name);
  return elements / format.elements;
}

}  // namespace

const BlockFormat* FindBlockFormat(TensorType type) {
  const Entry* entry = FindEntry(type);
  return entry == nullptr ? nullptr : &entry->format;
}

const BlockFormat& FormatOf(TensorType type) { return EntryOf(type).format; }

int64_t RowBytes(TensorType type, int64_t elements) {
  const BlockFormat& format = FormatOf(type);
  return WholeBlocks(format, elements) * format.bytes;
}

void DequantizeRow(TensorType type, const std::byte* source, int64_t elements, float* out) {
  const Entry& entry = EntryOf(type);
  entry.read(reinterpret_cast<const Byte*>(source), WholeBlocks(entry.format, elements), out);
}

}  // namespace facet
