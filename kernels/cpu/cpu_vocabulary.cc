#include "kernels/cpu/cpu_vocabulary.h"

#include <algorithm>
#include <limits>

#include "kernels/canonical_math.h"
#include "kernels/host/logit_edit.h"

namespace facet {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// A list is pruned when it has grown to twice the count wanted, and not before this size.
constexpr size_t kPruneFrom = 64;

}  // namespace

void TopCandidates::Reset(int count) {
  count_ = static_cast<size_t>(std::max(count, 0));
  threshold_ = -kInfinity;
  kept_.clear();
}

void TopCandidates::Offer(const Candidate& candidate) {
  kept_.push_back(candidate);
  if (kept_.size() >= std::max(2 * count_, kPruneFrom)) Prune();
}

void TopCandidates::Prune() {
  if (kept_.size() <= count_) return;
  const auto worst = kept_.begin() + static_cast<ptrdiff_t>(count_) - 1;
  std::nth_element(kept_.begin(), worst, kept_.end(), ComesBefore);
  threshold_ = worst->order;
  kept_.resize(count_);
}

void TopCandidates::Finish(int count, std::vector<Candidate>* all) {
  const size_t wanted = std::min(all->size(), static_cast<size_t>(std::max(count, 0)));
  std::partial_sort(all->begin(), all->begin() + static_cast<ptrdiff_t>(wanted), all->end(),
                    ComesBefore);
  all->resize(wanted);
}

CpuVocabulary::CpuVocabulary(const KernelTable& kernels, ThreadPool* pool)
    : kernels_(kernels), pool_(*pool), scratch_(static_cast<size_t>(pool->threads())) {}

void CpuVocabulary::Find(const float* logits, const VocabularySlices& slices,
                         const CandidateQuery& query, CandidateReply* reply) {
  logits_ = logits;
  slices_ = &slices;
  query_ = &query;
  for (Scratch& scratch : scratch_) {
    scratch.best.Reset(query.count);
    scratch.raw_best.Reset(query.raw_count);
    scratch.finite = true;
  }
  *reply = CandidateReply();
  const size_t count = slices.starts.size() - 1;
  if (query.sums) reply->sums.resize(count);
  if (query.raw_sums) reply->raw_sums.resize(count);
  pool_.ParallelFor(static_cast<int64_t>(count), [&](int64_t i, int thread) {
    const size_t slice = static_cast<size_t>(i);
    ScanSlice(slices.starts[slice], slices.starts[slice + 1],
              &scratch_[static_cast<size_t>(thread)],
              query.sums ? &reply->sums[slice] : nullptr,
              query.raw_sums ? &reply->raw_sums[slice] : nullptr);
  });
  for (const Scratch& scratch : scratch_) {
    reply->finite &= scratch.finite;
    const std::vector<Candidate>& best = scratch.best.kept();
    const std::vector<Candidate>& raw = scratch.raw_best.kept();
    reply->best.insert(reply->best.end(), best.begin(), best.end());
    reply->raw_best.insert(reply->raw_best.end(), raw.begin(), raw.end());
  }
  if (!reply->finite) {
    *reply = CandidateReply();
    reply->finite = false;
    return;
  }
  TopCandidates::Finish(query.count, &reply->best);
  TopCandidates::Finish(query.raw_count, &reply->raw_best);
}

void CpuVocabulary::ScanSlice(int64_t begin, int64_t end, Scratch* scratch, SliceSum* sum,
                              SliceSum* raw_sum) {
  float max = -kInfinity;
  const int64_t first =
      query_->gumbel && query_->count > 0 ? BestChunk(begin, end, scratch) : begin;
  for (int64_t at = begin; at < end; at += kChunk) {
    // The most promising chunk changes places with the first.
    const int64_t chunk = at == begin ? first : at == first ? begin : at;
    const int size = static_cast<int>(std::min<int64_t>(kChunk, end - chunk));
    ScanChunk(chunk, size, scratch);
    max = std::max(max, kernels_.max(scratch->processed, size));
  }
  if (!scratch->finite) return;
  if (sum != nullptr) *sum = SumSlice(begin, end, max, false, scratch);
  if (raw_sum != nullptr) {
    const float raw_max = kernels_.max(logits_ + begin, end - begin);
    *raw_sum = SumSlice(begin, end, raw_max, true, scratch);
  }
}

int64_t CpuVocabulary::BestChunk(int64_t begin, int64_t end, Scratch* scratch) {
  float max = -kInfinity;
  int64_t best = begin;
  for (int64_t chunk = begin; chunk < end; chunk += kChunk) {
    const int size = static_cast<int>(std::min<int64_t>(kChunk, end - chunk));
    Process(chunk, size, scratch);
    const float chunk_max = kernels_.max(scratch->processed, size);
    if (chunk_max > max) {
      max = chunk_max;
      best = chunk;
    }
  }
  return best;
}

void CpuVocabulary::Process(int64_t begin, int size, Scratch* scratch) {
  scratch->finite &= kernels_.scale_logits(logits_ + begin, size, query_->inverse_temperature,
                                           scratch->processed);
  const auto first = std::lower_bound(
      query_->edits.begin(), query_->edits.end(), begin,
      [](const LogitEdit& edit, int64_t row) { return edit.row < row; });
  for (auto edit = first; edit != query_->edits.end() && edit->row < begin + size; ++edit) {
    const float processed = EditedLogit(*edit, logits_) * query_->inverse_temperature;
    scratch->finite &= processed < kInfinity;
    scratch->processed[edit->row - begin] = processed;
  }
}

void CpuVocabulary::ScanChunk(int64_t begin, int size, Scratch* scratch) {
  Process(begin, size, scratch);
  if (!scratch->finite) return;
  if (scratch->best.wanted()) {
    const float* order = scratch->processed;
    const float threshold = scratch->best.threshold();
    if (query_->gumbel) {
      const uint32_t first_id = static_cast<uint32_t>(slices_->first_id + begin);
      kernels_.gumbel(scratch->processed, size, query_->key, first_id, threshold,
                      scratch->order);
      order = scratch->order;
    }
    OfferChunk(order, begin, size, scratch, &scratch->best);
  }
  if (scratch->raw_best.wanted()) {
    OfferChunk(logits_ + begin, begin, size, scratch, &scratch->raw_best);
  }
}

void CpuVocabulary::OfferChunk(const float* order, int64_t begin, int size, Scratch* scratch,
                               TopCandidates* to) {
  const int found = kernels_.select(order, size, to->threshold(), scratch->indices);
  for (int i = 0; i < found; ++i) {
    const int32_t index = scratch->indices[i];
    if (order[index] < to->threshold()) continue;  // it has risen meanwhile
    const int64_t row = begin + index;
    to->Offer({order[index], scratch->processed[index], logits_[row],
               slices_->first_id + static_cast<int32_t>(row)});
  }
}

SliceSum CpuVocabulary::SumSlice(int64_t begin, int64_t end, float max, bool raw,
                                 Scratch* scratch) {
  SliceSum result{max, 0};
  if (max == -kInfinity) return result;  // an empty slice or a wholly banned one
  alignas(64) float sums[16] = {};
  for (int64_t chunk = begin; chunk < end; chunk += kChunk) {
    const int size = static_cast<int>(std::min<int64_t>(kChunk, end - chunk));
    if (!raw) Process(chunk, size, scratch);
    kernels_.sum_exp(raw ? logits_ + chunk : scratch->processed, size, max, sums);
  }
  result.sum = Tree16(sums);
  return result;
}

}  // namespace facet
