#ifndef FACET_KERNELS_CPU_PACK_H_
#define FACET_KERNELS_CPU_PACK_H_

// Between the blocks of a file and packed panels (packed_format.h).

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cpu/packed_format.h"
#include "kernels/device.h"

namespace facet {

// F32 for the types that are dequantised at load.
PackedFormat PackedFormatOf(TensorType type);

// The same, split where the source asks for it and its type can be.
PackedFormat PackedFormatOf(const MatrixSource& source);

// Bytes of one panel, and of its low bits where the format is split (else 0).
int64_t PanelBytes(PackedFormat format, int64_t columns);
int64_t LowBytes(PackedFormat format, int64_t columns);

// Where a panel lies; `low` is looked at in split formats only.
template <typename Byte>
struct PanelAt {
  Byte* panel = nullptr;
  Byte* low = nullptr;
};

// Packs output rows [32 panel, 32 panel + 32) into `out`, which is zeroed. InvalidArgument names
// tensor and row if a scale (or, of a dequantised type, a weight) is not finite.
absl::Status PackPanel(const MatrixSource& source, int64_t panel, PanelAt<std::byte> out);

// out[k] = scale x weight k of column `column` of a panel, dequantised as DequantizeRow() does.
void UnpackRow(PackedFormat format, PanelAt<const std::byte> panel, int column, int64_t columns,
               float scale, float* out);

}  // namespace facet

#endif  // FACET_KERNELS_CPU_PACK_H_
