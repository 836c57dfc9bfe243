#ifndef FACET_KERNELS_CPU_PACK_H_
#define FACET_KERNELS_CPU_PACK_H_

// From the blocks of a file to packed panels (packed_format.h); unpack.h leads back.

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

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

// The error of the lowest task, of tasks that are handed out in order to several threads. Each
// thread stops at its first error.
class FirstFailure {
 public:
  explicit FirstFailure(int threads) : failures_(static_cast<size_t>(threads)) {}

  bool Seen(int thread) const { return !failures_[static_cast<size_t>(thread)].status.ok(); }
  void Note(int thread, int64_t task, absl::Status status) {
    if (!status.ok()) failures_[static_cast<size_t>(thread)] = {task, std::move(status)};
  }
  absl::Status Take() const;

 private:
  struct Failure {
    int64_t task = INT64_MAX;
    absl::Status status;
  };
  std::vector<Failure> failures_;  // by thread
};

// Where a panel lies; `low` is looked at in split formats only.
template <typename Byte>
struct PanelAt {
  Byte* panel = nullptr;
  Byte* low = nullptr;
};

// Packs output rows [32 panel, 32 panel + 32) into `out`, which is zeroed. InvalidArgument names
// tensor and row if a scale (or, of a dequantised type, a weight) is not finite.
absl::Status PackPanel(const MatrixSource& source, int64_t panel, PanelAt<std::byte> out);

}  // namespace facet

#endif  // FACET_KERNELS_CPU_PACK_H_
