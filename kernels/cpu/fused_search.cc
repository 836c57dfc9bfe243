#include "kernels/cpu/fused_search.h"

#include <algorithm>

#include "base/check.h"

namespace facet {
namespace {

bool WantsSums(const CandidateQuery& query) { return query.sums || query.raw_sums; }

int64_t PanelOf(int64_t head_row) { return head_row / kPanelColumns; }

}  // namespace

FusedSearch::FusedSearch(const KernelTable& kernels, ThreadPool* pool, CpuProduct* product)
    : kernels_(kernels), pool_(*pool), product_(*product) {
  for (int i = 0; i < pool->threads(); ++i) scratch_.emplace_back(kernels);
}

void FusedSearch::Reserve(const HeadSearch& search, int rows, int count) {
  search_ = &search;
  pass_rows_ = rows;
  CandidateQuery query;
  query.count = count;
  findings_.resize(std::max(findings_.size(), static_cast<size_t>(rows) * scratch_.size()));
  for (RowFindings& found : findings_) found.Reset(query);
  CutPieces(false);
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
  bool sums = false;
  for (size_t i = 0; i < rows.size(); ++i) {
    const CandidateQuery& asked = query(rows[i]);
    CandidateReply* reply = &replies[static_cast<size_t>(rows[i])];
    sums |= WantsSums(asked);
    Clear(reply);
    if (asked.sums) reply->sums.resize(slices);
    if (asked.raw_sums) reply->raw_sums.resize(slices);
    for (RowFindings& found : findings(i)) found.Reset(asked);
  }
  CutPieces(sums);
  SizeScratch();
}

void FusedSearch::SizeScratch() {
  const size_t bytes = static_cast<size_t>(pass_rows_ * stride_) * sizeof(float);
  for (Scratch& scratch : scratch_) {
    if (scratch.logits.size() >= bytes) continue;
    absl::StatusOr<AlignedBuffer> larger = AlignedBuffer::Make(bytes);
    FACET_CHECK(larger.ok(), "{}", larger.status().ToString());
    scratch.logits = *std::move(larger);
  }
}

void FusedSearch::CutPieces(bool whole_slices) {
  const std::vector<int64_t>& starts = search_->slices->starts;
  pieces_.clear();
  int64_t longest = 0;
  for (size_t slice = 0; slice + 1 < starts.size(); ++slice) {
    const int64_t end = starts[slice + 1];
    const int64_t step = whole_slices ? end - starts[slice] : ChunkSearch::kChunk;
    for (int64_t begin = starts[slice]; begin < end; begin += step) {
      pieces_.push_back({slice, begin, std::min(begin + step, end)});
      longest = std::max(longest, pieces_.back().end - begin);
    }
    // An empty slice has a sum, too.
    if (whole_slices && end == starts[slice]) pieces_.push_back({slice, end, end});
  }
  // A piece may begin and end inside a panel.
  stride_ = (longest + 3 * kPanelColumns - 1) / kPanelColumns * kPanelColumns;
}

void FusedSearch::SearchPiece(const Piece& piece, std::span<const int> rows,
                              std::span<CandidateReply> replies, int thread) {
  Scratch& scratch = scratch_[static_cast<size_t>(thread)];
  float* logits = reinterpret_cast<float*>(scratch.logits.data());  // from the first panel on
  const int64_t origin = PanelOf(piece.begin) * kPanelColumns;
  const LogitChunk first = {logits + piece.begin - origin, piece.begin, piece.end - piece.begin};
  const auto of_row = [&](LogitChunk chunk, int row) {
    chunk.logits += (row - rows.front()) * stride_;
    return chunk;
  };
  int64_t known = origin;  // rows of the head whose logits there are
  ForEachChunk(first, [&](const LogitChunk& chunk) {
    const int64_t end = (PanelOf(chunk.begin + chunk.size - 1) + 1) * kPanelColumns;
    // One thread takes the pieces in their order.
    const bool goes_on = end < piece.end || scratch_.size() == 1;
    if (known < end) Multiply(known, end, goes_on, logits + known - origin, thread);
    known = end;
    for (size_t i = 0; i < rows.size(); ++i) {
      scratch.search.Look(query(rows[i]), of_row(chunk, rows[i]), search_->slices->first_id,
                          &findings(i)[static_cast<size_t>(thread)]);
    }
  });
  for (const int row : rows) {
    Sum(piece.slice, query(row), of_row(first, row), &scratch.search,
        &replies[static_cast<size_t>(row)]);
  }
}

void FusedSearch::Multiply(int64_t begin, int64_t end, bool goes_on, float* out, int thread) {
  CpuProduct::Part part = {head_, out, stride_};
  part.first_panel = PanelOf(begin);
  product_.Panels(part, PanelOf(begin), PanelOf(end), goes_on, thread);
  if (search_->soft_cap <= 0) return;
  const int64_t size = std::min(end, head_->rows()) - begin;
  for (int row = 0; row < pass_rows_; ++row) {
    kernels_.soft_cap(out + row * stride_, size, search_->soft_cap);
  }
}

void FusedSearch::Sum(size_t index, const CandidateQuery& query, const LogitChunk& slice,
                      ChunkSearch* search, CandidateReply* reply) const {
  if (query.sums) reply->sums[index] = search->Sum(query, slice, ChunkSearch::kProcessed);
  if (query.raw_sums) reply->raw_sums[index] = search->Sum(query, slice, ChunkSearch::kRaw);
}

}  // namespace facet
