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

void TopCandidates::Reset(int count, float floor) {
  count_ = static_cast<size_t>(count);
  threshold_ = floor;
  kept_.clear();
}

void TopCandidates::Offer(const Candidate& candidate) {
  kept_.push_back(candidate);
  if (kept_.size() >= std::max(2 * count_, kPruneFrom)) Prune();
}

void TopCandidates::Prune() {
  if (kept_.size() < count_) return;
  const auto worst = kept_.begin() + static_cast<ptrdiff_t>(count_) - 1;
  std::nth_element(kept_.begin(), worst, kept_.end(), ComesBefore);
  threshold_ = worst->order;
  kept_.resize(count_);
}

CpuVocabulary::CpuVocabulary(const KernelTable& kernels, ThreadPool* pool)
    : kernels_(kernels), pool_(*pool), scratch_(static_cast<size_t>(pool->threads())) {}

void CpuVocabulary::Find(const float* logits, const VocabularySlices& slices,
                         const CandidateQuery& query, CandidateReply* reply) {
  logits_ = logits;
  slices_ = &slices;
  query_ = &query;
  const int64_t count = static_cast<int64_t>(slices.starts.size()) - 1;
  state_.assign(static_cast<size_t>(count), Slice());
  *reply = CandidateReply();
  if (query.sums) reply->sums.resize(state_.size());
  if (query.raw_sums) reply->raw_sums.resize(state_.size());
  pool_.ParallelFor(count, [&](int64_t i, int thread) {
    const size_t slice = static_cast<size_t>(i);
    Scratch* scratch = &scratch_[static_cast<size_t>(thread)];
    ScanSlice(slice, scratch);
    if (query.sums) reply->sums[slice] = SumSlice(slice, kProcessed, scratch);
    if (query.raw_sums) reply->raw_sums[slice] = SumSlice(slice, kRaw, scratch);
  });
  for (const Slice& slice : state_) {
    if (slice.finite) continue;
    *reply = CandidateReply();
    reply->finite = false;
    return;
  }
  SelectBest(kProcessed, &reply->best);
  SelectBest(kRaw, &reply->raw_best);
}

bool CpuVocabulary::Seed(const float* bounds, const VocabularySlices& slices,
                         const CandidateQuery& query, std::vector<int32_t>* rows) {
  logits_ = bounds;
  slices_ = &slices;
  query_ = &query;
  rows->clear();
  state_.assign(slices.starts.size() - 1, Slice());
  pool_.ParallelFor(static_cast<int64_t>(state_.size()), [&](int64_t i, int thread) {
    ScanSlice(static_cast<size_t>(i), &scratch_[static_cast<size_t>(thread)]);
  });
  for (const Slice& slice : state_) {
    if (!slice.finite) return false;
  }
  std::vector<Candidate> best;
  if (query.gumbel) {  // the noise of all is looked at once, in Reach()
    SeedThreshold(kProcessed);
    best = scratch_.front().best[kProcessed].kept();
  } else {
    SelectBest(kProcessed, &best);
  }
  for (const Candidate& candidate : best) rows->push_back(candidate.id - slices.first_id);
  std::sort(rows->begin(), rows->end());
  return true;
}

void CpuVocabulary::Reach(float threshold, std::vector<Reached>* reached) {
  for (Scratch& scratch : scratch_) scratch.reached.clear();
  pool_.ParallelFor(static_cast<int64_t>(state_.size()), [&](int64_t slice, int thread) {
    ReachInSlice(static_cast<size_t>(slice), threshold, &scratch_[static_cast<size_t>(thread)]);
  });
  reached->clear();
  for (const Scratch& scratch : scratch_) {
    reached->insert(reached->end(), scratch.reached.begin(), scratch.reached.end());
  }
}

void CpuVocabulary::ReachInSlice(size_t slice, float threshold, Scratch* scratch) {
  const float noise = query_->gumbel ? canonical::kGumbelBound : 0;
  if (state_[slice].max[kProcessed] + noise < threshold) return;
  for (int64_t chunk = begin(slice); chunk < end(slice); chunk += kChunk) {
    const int size = static_cast<int>(std::min<int64_t>(kChunk, end(slice) - chunk));
    Process(chunk, size, scratch);
    const float* order = Orders(chunk, size, threshold, scratch);
    const int found = kernels_.select(order, size, threshold, scratch->indices);
    for (int i = 0; i < found; ++i) {
      const int32_t index = scratch->indices[i];
      scratch->reached.push_back({order[index], static_cast<int32_t>(chunk) + index});
    }
  }
}

const float* CpuVocabulary::Orders(int64_t begin, int size, float threshold,
                                   Scratch* scratch) const {
  if (!query_->gumbel) return scratch->processed;
  const uint32_t first_id = static_cast<uint32_t>(slices_->first_id + begin);
  kernels_.gumbel(scratch->processed, size, query_->key, first_id, threshold, scratch->order);
  return scratch->order;
}

void CpuVocabulary::ScanSlice(size_t index, Scratch* scratch) {
  Slice& slice = state_[index];
  slice.max = {-kInfinity, -kInfinity};
  slice.best_chunk = {begin(index), begin(index)};
  for (int64_t chunk = begin(index); chunk < end(index); chunk += kChunk) {
    const int size = static_cast<int>(std::min<int64_t>(kChunk, end(index) - chunk));
    slice.finite &= Process(chunk, size, scratch);
    for (const Logits which : {kProcessed, kRaw}) {
      const float max = kernels_.max(which == kRaw ? logits_ + chunk : scratch->processed, size);
      if (max <= slice.max[which]) continue;
      slice.max[which] = max;
      slice.best_chunk[which] = chunk;
    }
  }
}

bool CpuVocabulary::Process(int64_t begin, int size, Scratch* scratch) const {
  bool finite =
      kernels_.scale_logits(logits_ + begin, size, query_->inverse_temperature, scratch->processed);
  const auto first =
      std::lower_bound(query_->edits.begin(), query_->edits.end(), begin,
                       [](const LogitEdit& edit, int64_t row) { return edit.row < row; });
  for (auto edit = first; edit != query_->edits.end() && edit->row < begin + size; ++edit) {
    const float processed = EditedLogit(*edit, logits_) * query_->inverse_temperature;
    finite &= processed < kInfinity;
    scratch->processed[edit->row - begin] = processed;
  }
  return finite;
}

SliceSum CpuVocabulary::SumSlice(size_t slice, Logits which, Scratch* scratch) {
  SliceSum result{state_[slice].max[which], 0};
  if (result.max == -kInfinity) return result;  // an empty slice or a wholly banned one
  alignas(64) float sums[16] = {};
  for (int64_t chunk = begin(slice); chunk < end(slice); chunk += kChunk) {
    const int size = static_cast<int>(std::min<int64_t>(kChunk, end(slice) - chunk));
    if (which == kProcessed) Process(chunk, size, scratch);
    kernels_.sum_exp(which == kRaw ? logits_ + chunk : scratch->processed, size, result.max, sums);
  }
  result.sum = Tree16(sums);
  return result;
}

void CpuVocabulary::SelectBest(Logits which, std::vector<Candidate>* best) {
  best->clear();
  if (count(which) <= 0) return;
  const float floor = SeedThreshold(which);
  for (Scratch& scratch : scratch_) scratch.best[which].Reset(count(which), floor);
  pool_.ParallelFor(static_cast<int64_t>(state_.size()), [&](int64_t slice, int thread) {
    SelectFromSlice(static_cast<size_t>(slice), which, &scratch_[static_cast<size_t>(thread)]);
  });
  for (Scratch& scratch : scratch_) {
    scratch.best[which].Prune();
    const std::vector<Candidate>& kept = scratch.best[which].kept();
    best->insert(best->end(), kept.begin(), kept.end());
  }
  std::sort(best->begin(), best->end(), ComesBefore);
  best->resize(std::min(best->size(), static_cast<size_t>(count(which))));
}

// What the best candidates of the most promising chunk reach.
float CpuVocabulary::SeedThreshold(Logits which) {
  const auto best =
      std::max_element(state_.begin(), state_.end(),
                       [&](const Slice& a, const Slice& b) { return a.max[which] < b.max[which]; });
  const size_t slice = static_cast<size_t>(best - state_.begin());
  const int64_t chunk = best->best_chunk[which];
  Scratch* scratch = &scratch_.front();
  TopCandidates& seeds = scratch->best[which];
  seeds.Reset(count(which), -kInfinity);
  SelectFromChunk(chunk, static_cast<int>(std::min<int64_t>(kChunk, end(slice) - chunk)), which,
                  scratch);
  seeds.Prune();
  return seeds.threshold();
}

void CpuVocabulary::SelectFromSlice(size_t slice, Logits which, Scratch* scratch) {
  const bool noisy = which == kProcessed && query_->gumbel;
  const float noise = noisy ? canonical::kGumbelBound : 0;
  if (state_[slice].max[which] + noise < scratch->best[which].threshold()) return;
  for (int64_t chunk = begin(slice); chunk < end(slice); chunk += kChunk) {
    SelectFromChunk(chunk, static_cast<int>(std::min<int64_t>(kChunk, end(slice) - chunk)), which,
                    scratch);
  }
}

void CpuVocabulary::SelectFromChunk(int64_t begin, int size, Logits which, Scratch* scratch) {
  Process(begin, size, scratch);
  TopCandidates& best = scratch->best[which];
  const float* order =
      which == kRaw ? logits_ + begin : Orders(begin, size, best.threshold(), scratch);
  const int found = kernels_.select(order, size, best.threshold(), scratch->indices);
  for (int i = 0; i < found; ++i) {
    const int32_t index = scratch->indices[i];
    if (order[index] < best.threshold()) continue;  // it has risen meanwhile
    const int64_t row = begin + index;
    best.Offer({order[index], scratch->processed[index], logits_[row],
                slices_->first_id + static_cast<int32_t>(row)});
  }
}

}  // namespace facet
