#include "kernels/cpu/packed_matrix.h"

#include <utility>
#include <vector>

#include "base/status.h"
#include "kernels/cpu/pack.h"

namespace facet {

absl::StatusOr<std::unique_ptr<PackedMatrix>> PackedMatrix::Pack(const MatrixSource& source,
                                                                 const LeafCut* cut,
                                                                 ThreadPool* pool) {
  FACET_RETURN_IF_ERROR(CheckSource(source, cut));
  auto matrix = std::make_unique<PackedMatrix>();
  matrix->format_ = PackedFormatOf(source);
  matrix->rows_ = source.rows;
  matrix->columns_ = source.columns;
  matrix->panel_bytes_ = PanelBytes(matrix->format_, source.columns);
  matrix->low_bytes_ = LowBytes(matrix->format_, source.columns);
  matrix->leaves_ = MakeLeafRoots(source.columns, cut);
  const int64_t panels = matrix->panels();
  FACET_ASSIGN_OR_RETURN(matrix->bytes_,
                         AlignedBuffer::Make(static_cast<size_t>(
                             panels * (matrix->panel_bytes_ + matrix->low_bytes_))));
  // Every thread keeps its first error; panels are handed out in order, so the first of all is
  // the one with the lowest panel.
  struct Failure {
    int64_t panel = INT64_MAX;
    absl::Status status;
  };
  std::vector<Failure> failures(static_cast<size_t>(pool->threads()));
  pool->ParallelFor(panels, [&](int64_t panel, int thread) {
    Failure& failure = failures[static_cast<size_t>(thread)];
    if (!failure.status.ok()) return;
    std::byte* bytes = matrix->bytes_.data();
    failure.status =
        PackPanel(source, panel,
                  {bytes + panel * matrix->panel_bytes_,
                   bytes + panels * matrix->panel_bytes_ + panel * matrix->low_bytes_});
    if (!failure.status.ok()) failure.panel = panel;
  });
  const auto first =
      std::min_element(failures.begin(), failures.end(),
                       [](const Failure& a, const Failure& b) { return a.panel < b.panel; });
  FACET_RETURN_IF_ERROR(first->status);
  return matrix;
}

}  // namespace facet
