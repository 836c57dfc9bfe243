#include "kernels/cpu/chunk_search.h"

#include <algorithm>
#include <limits>

#include "kernels/canonical_math.h"
#include "kernels/host/logit_edit.h"

namespace facet {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// A list is pruned when it has grown to twice the count wanted, and not before this size.
constexpr size_t kPruneFrom = 64;
// Room for candidates is made beforehand if no more are wanted.
constexpr size_t kReservedMax = 4096;

// The best of all parts, which the first part takes up.
void Gather(std::span<RowFindings> found, TopCandidates RowFindings::*which, int count,
            std::vector<Candidate>* best) {
  best->clear();
  if (count <= 0) return;
  TopCandidates& all = found.front().*which;
  for (const RowFindings& part : found.subspan(1)) {
    for (const Candidate& candidate : (part.*which).kept()) {
      if (candidate.order >= all.threshold()) all.Offer(candidate);
    }
  }
  all.Prune();
  best->reserve(std::min(static_cast<size_t>(count), kReservedMax));
  best->assign(all.kept().begin(), all.kept().end());
  std::sort(best->begin(), best->end(), ComesBefore);
}

}  // namespace

void Clear(CandidateReply* reply) {
  reply->best.clear();
  reply->sums.clear();
  reply->raw_best.clear();
  reply->raw_sums.clear();
  reply->finite = true;
}

void TopCandidates::Reset(int count, float floor) {
  count_ = static_cast<size_t>(count);
  threshold_ = floor;
  kept_.clear();
  if (count > 0) kept_.reserve(std::clamp(2 * count_, kPruneFrom, kReservedMax));
}

void TopCandidates::Offer(const Candidate& candidate) {
  kept_.push_back(candidate);
  // Of one candidate the threshold is known at once.
  if (count_ == 1) Raise(candidate.order);
  if (kept_.size() >= std::max(2 * count_, kPruneFrom)) Prune();
}

void TopCandidates::Prune() {
  if (kept_.size() < count_) return;
  const auto worst = kept_.begin() + static_cast<ptrdiff_t>(count_) - 1;
  std::nth_element(kept_.begin(), worst, kept_.end(), ComesBefore);
  threshold_ = std::max(threshold_, worst->order);
  kept_.resize(count_);
}

void RowFindings::Reset(const CandidateQuery& query) {
  finite = true;
  best.Reset(query.count, -kInfinity);
  raw_best.Reset(query.raw_count, -kInfinity);
}

void Merge(std::span<RowFindings> found, const CandidateQuery& query, CandidateReply* reply) {
  for (const RowFindings& part : found) {
    if (part.finite) continue;
    Clear(reply);
    reply->finite = false;
    return;
  }
  Gather(found, &RowFindings::best, query.count, &reply->best);
  Gather(found, &RowFindings::raw_best, query.raw_count, &reply->raw_best);
}

bool ChunkSearch::Process(const CandidateQuery& query, const LogitChunk& chunk) {
  bool finite =
      kernels_.scale_logits(chunk.logits, chunk.size, query.inverse_temperature, processed_);
  const int64_t end = chunk.begin + chunk.size;
  const auto first =
      std::lower_bound(query.edits.begin(), query.edits.end(), chunk.begin,
                       [](const LogitEdit& edit, int64_t row) { return edit.row < row; });
  for (auto edit = first; edit != query.edits.end() && edit->row < end; ++edit) {
    const int64_t at = edit->row - chunk.begin;
    const float processed = EditedLogit(*edit, chunk.logits[at]) * query.inverse_temperature;
    finite &= processed < kInfinity;
    processed_[at] = processed;
  }
  return finite;
}

const float* ChunkSearch::Orders(const CandidateQuery& query, const LogitChunk& chunk,
                                 int32_t first_id, float threshold) {
  if (!query.gumbel) return processed_;
  kernels_.gumbel(processed_, static_cast<int>(chunk.size), query.key,
                  static_cast<uint32_t>(first_id + chunk.begin), threshold, order_);
  return order_;
}

std::span<const int32_t> ChunkSearch::Reaching(const float* values, int64_t size, float threshold) {
  const int found = kernels_.select(values, static_cast<int>(size), threshold, indices_);
  return std::span(indices_).first(static_cast<size_t>(found));
}

void ChunkSearch::Select(const CandidateQuery& query, const LogitChunk& chunk, int32_t first_id,
                         TopCandidates* best) {
  if (query.gumbel && best->count() == 1) {
    // The noise of the largest logit, which is likely to go far, spares that of many others.
    const float max = kernels_.max(processed_, chunk.size);
    const std::span<const int32_t> first = Reaching(processed_, chunk.size, max);
    if (!first.empty()) {
      const auto id = static_cast<uint32_t>(first_id + chunk.begin + first.front());
      best->Raise(max + GumbelNoise(query.key, id));
    }
  }
  const float* order = Orders(query, chunk, first_id, best->threshold());
  for (const int32_t index : Reaching(order, chunk.size, best->threshold())) {
    if (order[index] < best->threshold()) continue;  // it has risen meanwhile
    best->Offer({order[index], processed_[index], chunk.logits[index],
                 first_id + static_cast<int32_t>(chunk.begin + index)});
  }
}

void ChunkSearch::SelectRaw(const LogitChunk& chunk, int32_t first_id, TopCandidates* best) {
  for (const int32_t index : Reaching(chunk.logits, chunk.size, best->threshold())) {
    const float raw = chunk.logits[index];
    if (raw < best->threshold()) continue;
    best->Offer(
        {raw, processed_[index], raw, first_id + static_cast<int32_t>(chunk.begin + index)});
  }
}

void ChunkSearch::Look(const CandidateQuery& query, const LogitChunk& chunk, int32_t first_id,
                       RowFindings* found) {
  if (!Process(query, chunk)) {
    found->finite = false;
    return;
  }
  if (query.count > 0) Select(query, chunk, first_id, &found->best);
  if (query.raw_count > 0) SelectRaw(chunk, first_id, &found->raw_best);
}

SliceSum ChunkSearch::Sum(const CandidateQuery& query, const LogitChunk& slice, Logits which) {
  const auto values = [&](const LogitChunk& chunk) {
    if (which == kRaw) return chunk.logits;
    Process(query, chunk);
    return static_cast<const float*>(processed_);
  };
  SliceSum result{-kInfinity, 0};
  ForEachChunk(slice, [&](const LogitChunk& chunk) {
    result.max = std::max(result.max, kernels_.max(values(chunk), chunk.size));
  });
  if (result.max == -kInfinity) return result;  // an empty slice or a wholly banned one
  alignas(64) float sums[16] = {};
  ForEachChunk(slice, [&](const LogitChunk& chunk) {
    kernels_.sum_exp(values(chunk), chunk.size, result.max, sums);
  });
  result.sum = Tree16(sums);
  return result;
}

}  // namespace facet
