#ifndef FACET_KERNELS_CPU_PACK_KERNELS_H_
#define FACET_KERNELS_CPU_PACK_KERNELS_H_

// The inner loops of packing, compiled once per instruction set. Plain data only, as in
// kernel_table.h.

#include <cstdint>

#include "kernels/cpu/packed_format.h"

namespace facet {

// Some columns of a panel's rows.
struct PackArgs {
  // Where each output column's row of the matrix begins in the file. A panel at a matrix's end has
  // only the first `present`; the others point to any row, and zeros are packed in their place.
  const uint8_t* rows[kPanelColumns] = {};
  int present = kPanelColumns;
  int64_t begin = 0;  // columns of the matrix, whole blocks of the file
  int64_t end = 0;
  int64_t block_bytes = 0;  // in the file
  uint8_t* panel = nullptr;
  // Of split formats:
  uint8_t* low = nullptr;
  int32_t residuals[kPanelColumns] = {};  // the largest so far, squared, by output column
};

using PackColumns = void (*)(PackArgs* args);

// Null for the formats that pack.cc packs itself. The same bytes from every instruction set.
namespace avx2 {
PackColumns PackerOf(PackedFormat format);
}
namespace avx512 {
PackColumns PackerOf(PackedFormat format);
}

}  // namespace facet

#endif  // FACET_KERNELS_CPU_PACK_KERNELS_H_
