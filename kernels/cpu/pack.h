#ifndef FACET_KERNELS_CPU_PACK_H_
#define FACET_KERNELS_CPU_PACK_H_

// From the blocks of a file to packed panels (packed_format.h); unpack.h leads back. Needs AVX2, as
// the device does.

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cpu/pack_kernels.h"
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

// A matrix in memory: all panels, and behind them the low bits of all panels.
struct PackedShape {
  static PackedShape Of(const MatrixSource& source);

  PackedFormat format = PackedFormat::kF32;
  int64_t panels = 0;
  int64_t panel_bytes = 0;
  int64_t low_bytes = 0;  // of a panel; 0 where the format is not split

  int64_t bytes() const { return panels * (panel_bytes + low_bytes); }
  int64_t panel_at(int64_t panel) const { return panel * panel_bytes; }
  int64_t low_at(int64_t panel) const { return panels * panel_bytes + panel * low_bytes; }
};

// Where a panel lies; `low` is looked at in split formats only.
template <typename Byte>
struct PanelAt {
  Byte* panel = nullptr;
  Byte* low = nullptr;
};

// How an instruction set's inner loops are found (pack_kernels.h).
using FindPacker = PackColumns (*)(PackedFormat format);
// Of the widest that this processor has.
FindPacker WidestPackerOf();

// Packs output rows [32 panel, 32 panel + 32) into `out`, which is zeroed. InvalidArgument names
// tensor and row if a scale (or, of a dequantised type, a weight) is not finite.
absl::Status PackPanel(const MatrixSource& source, int64_t panel, PanelAt<std::byte> out,
                       FindPacker find_packer = WidestPackerOf());

}  // namespace facet

#endif  // FACET_KERNELS_CPU_PACK_H_
