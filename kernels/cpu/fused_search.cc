#include "kernels/cpu/fused_search.h"

#include <algorithm>

#include "base/check.h"

namespace facet {
namespace {

bool WantsSums(const CandidateQuery& query) { return query.sums || query.raw_sums; }

int64_t PanelOf(int64_t head_row) { return head_row / kPanelColumns; }

float* FloatsOf(AlignedBuffer& buffer) { return reinterpret_cast<float*>(buffer.data()); }

void Grow(int64_t floats, AlignedBuffer* buffer) {
  const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
  if (buffer->size() >= bytes) return;
  absl::StatusOr<AlignedBuffer> larger = AlignedBuffer::Make(bytes);
  FACET_CHECK(larger.ok(), "{}", larger.status().ToString());
  *buffer = *std::move(larger);
}

}  // namespace

FusedSearch::FusedSearch(const KernelTable& kernels, ThreadPool* pool, CpuProduct* product)
    : kernels_(kernels), pool_(*pool), product_(*product) {
  for (int i = 0; i < pool->threads(); ++i) scratch_.emplace_back(kernels);
}

void FusedSearch::Reserve(const HeadSearch& search, int rows, int count) {
  search_ = &search;
  pass_rows_ = rows;
  summed_.clear();
  CandidateQuery query;
  query.count = count;
  findings_.resize(std::max(findings_.size(), static_cast<size_t>(rows) * scratch_.size()));
  for (RowFindings& found : findings_) found.Reset(query);
  CutPieces();
  SizeScratch();
}

int FusedSearch::Run(const HeadSearch& search, std::span<const int> rows,
                     std::span<CandidateReply> replies) {
  search_ = &search;
  head_ = static_cast<const PackedMatrix*>(search.head);
  int passes = 0;
  for (; !rows.empty(); ++passes) {
    const size_t size = PassSize(rows);
    Pass(rows.first(size), replies);
    rows = rows.subspan(size);
  }
  return passes;
}

size_t FusedSearch::PassSize(std::span<const int> rows) const {
  int64_t candidates = 0;
  size_t size = 0;
  while (size < rows.size() && rows[size] - rows.front() < kPassRows) {
    const CandidateQuery& asked = query(rows[size]);
    candidates += int64_t{asked.count} + asked.raw_count;
    if (size > 0 && candidates > kPassCandidates) break;
    ++size;
  }
  return size;
}

void FusedSearch::Pass(std::span<const int> rows, std::span<CandidateReply> replies) {
  Prepare(rows, replies);
  pool_.ParallelFor(static_cast<int64_t>(pieces_.size()), [&](int64_t i, int thread) {
    SearchPiece(pieces_[static_cast<size_t>(i)], rows, replies, thread);
  });
  for (size_t i = 0; i < rows.size(); ++i) {
    Merge(findings(i), query(rows[i]), &replies[static_cast<size_t>(rows[i])]);
  }
}

void FusedSearch::Prepare(std::span<const int> rows, std::span<CandidateReply> replies) {
  pass_rows_ = rows.back() - rows.front() + 1;
  product_.Prepare(*head_, search_->x.data + rows.front() * head_->columns(), pass_rows_);
  const size_t slices = search_->slices->starts.size() - 1;
  findings_.resize(std::max(findings_.size(), rows.size() * scratch_.size()));
  summed_.clear();
  for (size_t i = 0; i < rows.size(); ++i) {
    const CandidateQuery& asked = query(rows[i]);
    CandidateReply* reply = &replies[static_cast<size_t>(rows[i])];
    if (WantsSums(asked)) summed_.push_back(i);
    Clear(reply);
    if (asked.sums) reply->sums.resize(slices);
    if (asked.raw_sums) reply->raw_sums.resize(slices);
    for (RowFindings& found : findings(i)) found.Reset(asked);
  }
  CutPieces();
  SizeScratch();
}

void FusedSearch::SizeScratch() {
  for (Scratch& scratch : scratch_) {
    Grow(pass_rows_ * kStride, &scratch.logits);
    Grow(static_cast<int64_t>(summed_.size()) * slice_stride_, &scratch.slice);
  }
}

void FusedSearch::CutPieces() {
  const std::vector<int64_t>& starts = search_->slices->starts;
  const bool whole_slices = !summed_.empty();
  pieces_.clear();
  slice_stride_ = 0;
  for (size_t slice = 0; slice + 1 < starts.size(); ++slice) {
    const int64_t end = starts[slice + 1];
    const int64_t step = whole_slices ? end - starts[slice] : ChunkSearch::kChunk;
    for (int64_t begin = starts[slice]; begin < end; begin += step) {
      pieces_.push_back({slice, begin, std::min(begin + step, end)});
    }
    // An empty slice has a sum, too.
    if (whole_slices && end == starts[slice]) pieces_.push_back({slice, end, end});
    slice_stride_ = std::max(slice_stride_, end - starts[slice]);
  }
}

void FusedSearch::SearchPiece(const Piece& piece, std::span<const int> rows,
                              std::span<CandidateReply> replies, int thread) {
  for (int64_t begin = piece.begin; begin < piece.end; begin += ChunkSearch::kChunk) {
    SearchChunk(piece, begin, rows, thread);
  }
  Sum(piece, rows, replies, thread);
}

void FusedSearch::SearchChunk(const Piece& piece, int64_t begin, std::span<const int> rows,
                              int thread) {
  Scratch& scratch = scratch_[static_cast<size_t>(thread)];
  const int64_t size = std::min<int64_t>(ChunkSearch::kChunk, piece.end - begin);
  const int64_t origin = PanelOf(begin) * kPanelColumns;
  const int64_t end = (PanelOf(begin + size - 1) + 1) * kPanelColumns;
  float* logits = FloatsOf(scratch.logits);  // from the first panel on
  // One thread takes the pieces in their order.
  const bool goes_on = begin + size < piece.end || scratch_.size() == 1;
  Multiply(origin, end, goes_on, logits, thread);
  const auto of_row = [&](size_t index) {
    const int64_t row = rows[index] - rows.front();
    return LogitChunk{logits + row * kStride + begin - origin, begin, size};
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    scratch.search.Look(query(rows[i]), of_row(i), search_->slices->first_id,
                        &findings(i)[static_cast<size_t>(thread)]);
  }
  int64_t kept = begin - piece.begin;
  for (const size_t i : summed_) {
    std::copy_n(of_row(i).logits, size, FloatsOf(scratch.slice) + kept);
    kept += slice_stride_;
  }
}

void FusedSearch::Multiply(int64_t begin, int64_t end, bool goes_on, float* out, int thread) {
  CpuProduct::Part part = {head_, out, kStride};
  part.first_panel = PanelOf(begin);
  product_.Panels(part, PanelOf(begin), PanelOf(end), goes_on, thread);
  if (search_->soft_cap <= 0) return;
  const int64_t size = std::min(end, head_->rows()) - begin;
  for (int row = 0; row < pass_rows_; ++row) {
    kernels_.soft_cap(out + row * kStride, size, search_->soft_cap);
  }
}

void FusedSearch::Sum(const Piece& piece, std::span<const int> rows,
                      std::span<CandidateReply> replies, int thread) {
  Scratch& scratch = scratch_[static_cast<size_t>(thread)];
  int64_t kept = 0;
  for (const size_t i : summed_) {
    const LogitChunk slice = {FloatsOf(scratch.slice) + kept, piece.begin, piece.end - piece.begin};
    kept += slice_stride_;
    const CandidateQuery& asked = query(rows[i]);
    CandidateReply& reply = replies[static_cast<size_t>(rows[i])];
    const auto sum = [&](ChunkSearch::Logits which) {
      return scratch.search.Sum(asked, slice, which);
    };
    if (asked.sums) reply.sums[piece.slice] = sum(ChunkSearch::kProcessed);
    if (asked.raw_sums) reply.raw_sums[piece.slice] = sum(ChunkSearch::kRaw);
  }
}

}  // namespace facet
