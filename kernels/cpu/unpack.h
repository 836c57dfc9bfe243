#ifndef FACET_KERNELS_CPU_UNPACK_H_
#define FACET_KERNELS_CPU_UNPACK_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/pack.h"
#include "kernels/cpu/packed_format.h"

namespace facet {

// out[k] = scale x weight k of column `column` of a panel, dequantised as DequantizeRow() does.
void UnpackRow(PackedFormat format, PanelAt<const std::byte> panel, int column, int64_t columns,
               float scale, float* out);

}  // namespace facet

#endif  // FACET_KERNELS_CPU_UNPACK_H_
