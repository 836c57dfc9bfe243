#include "kernels/cpu/packed_matrix.h"

#include <utility>
#include <vector>

#include "base/first_failure.h"
#include "base/status.h"
#include "kernels/cpu/pack.h"

namespace facet {

absl::StatusOr<std::unique_ptr<PackedMatrix>> PackedMatrix::Pack(const MatrixSource& source,
                                                                 const LeafCut* cut,
                                                                 ThreadPool* pool) {
  FACET_RETURN_IF_ERROR(CheckSource(source, cut));
  const PackedShape shape = PackedShape::Of(source);
  FACET_ASSIGN_OR_RETURN(AlignedBuffer buffer,
                         AlignedBuffer::MakeLarge(static_cast<size_t>(shape.bytes())));
  std::byte* bytes = buffer.data();
  FirstFailure failure;
  pool->ParallelFor(shape.panels, [&](int64_t panel, int) {
    if (failure.Before(panel)) return;
    failure.Note(panel, PackPanel(source, panel,
                                  {bytes + shape.panel_at(panel), bytes + shape.low_at(panel)}));
  });
  FACET_RETURN_IF_ERROR(failure.Take());
  auto matrix = std::make_unique<PackedMatrix>(
      shape.format, source.rows, source.columns, MakeLeafRoots(source.columns, cut),
      PanelStream{bytes, shape.panel_bytes, shape.panel_bytes},
      PanelStream{bytes + shape.low_at(0), shape.low_bytes, shape.low_bytes});
  matrix->own_ = std::move(buffer);
  return matrix;
}

}  // namespace facet
