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
// Room for candidates is made beforehand if no more are wanted.
constexpr size_t kReservedMax = 4096;

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
  kept_.reserve(std::clamp(2 * count_, kPruneFrom, kReservedMax));
}

void TopCandidates::Offer(const Candidate& candidate) {
  kept_.push_back(candidate);
  if (kept_.size() >= std::max(2 * count_, kPruneFrom)) Prune();
}

void TopCandidates::Prune() {
  if (kept_.size() < count_) return;
  const auto worst = kept_.begin() + static_cast<ptrdiff_t>(count_) - 1;
  std::nth_element(kept_.begin(), worst, kept_.end(), ComesBefore);
  threshold_ = std::max(threshold_, worst->order);
  kept_.resize(count_);
}

CpuVocabulary::CpuVocabulary(const KernelTable& kernels, ThreadPool* pool)
    : kernels_(kernels), pool_(*pool), scratch_(static_cast<size_t>(pool->threads())) {}

void CpuVocabulary::Reserve(size_t slices, int count, size_t reached) {
  find_.state.reserve(slices);
  merged_.reserve(std::min(static_cast<size_t>(count) * scratch_.size(), kReservedMax));
  for (Scratch& scratch : scratch_) {
    scratch.best[kProcessed].Reset(count, -kInfinity);
    scratch.reached.reserve(reached);
  }
}

void CpuVocabulary::Find(const float* logits, const VocabularySlices& slices,
                         const CandidateQuery& query, CandidateReply* reply) {
  scan_ = &find_;
  const int64_t count = static_cast<int64_t>(slices.starts.size()) - 1;
  find_.logits = logits;
  find_.slices = &slices;
  find_.query = &query;
  find_.state.assign(static_cast<size_t>(count), Slice());
  Clear(reply);
  if (query.sums) reply->sums.resize(find_.state.size());
  if (query.raw_sums) reply->raw_sums.resize(find_.state.size());
  pool_.ParallelFor(count, [&](int64_t i, int thread) {
    const size_t slice = static_cast<size_t>(i);
    Scratch* scratch = &scratch_[static_cast<size_t>(thread)];
    ScanSlice(slice, scratch);
    if (query.sums) reply->sums[slice] = SumSlice(slice, kProcessed, scratch);
    if (query.raw_sums) reply->raw_sums[slice] = SumSlice(slice, kRaw, scratch);
  });
  for (const Slice& slice : find_.state) {
    if (slice.finite) continue;
    Clear(reply);
    reply->finite = false;
    return;
  }
  SelectBest(kProcessed, query.count);
  reply->best = merged_;
  SelectBest(kRaw, query.raw_count);
  reply->raw_best = merged_;
}

bool CpuVocabulary::Seed(const float* bounds, const VocabularySlices& slices,
                         const CandidateQuery& query, int count, Scan* scan,
                         std::vector<int32_t>* rows) {
  scan_ = scan;
  scan->logits = bounds;
  scan->slices = &slices;
  scan->query = &query;
  scan->state.assign(slices.starts.size() - 1, Slice());
  rows->clear();
  pool_.ParallelFor(static_cast<int64_t>(scan->state.size()), [&](int64_t i, int thread) {
    ScanSlice(static_cast<size_t>(i), &scratch_[static_cast<size_t>(thread)]);
  });
  for (const Slice& slice : scan->state) {
    if (!slice.finite) return false;
  }
  if (query.gumbel) {  // the noise of all is looked at once, in Reach()
    SeedThreshold(kProcessed, count);
    merged_ = scratch_.front().best[kProcessed].kept();
  } else {
    SelectBest(kProcessed, count);
  }
  for (const Candidate& candidate : merged_) rows->push_back(candidate.id - slices.first_id);
  std::sort(rows->begin(), rows->end());
  return true;
}

bool CpuVocabulary::Reach(Scan* scan, float threshold, size_t limit,
                          std::vector<Reached>* reached) {
  scan_ = scan;
  for (Scratch& scratch : scratch_) scratch.reached.clear();
  pool_.ParallelFor(static_cast<int64_t>(scan->state.size()), [&](int64_t slice, int thread) {
    ReachInSlice(static_cast<size_t>(slice), threshold, limit,
                 &scratch_[static_cast<size_t>(thread)]);
  });
  reached->clear();
  for (const Scratch& scratch : scratch_) {
    if (reached->size() + scratch.reached.size() > limit) return false;
    reached->insert(reached->end(), scratch.reached.begin(), scratch.reached.end());
  }
  return true;
}

void CpuVocabulary::ReachInSlice(size_t slice, float threshold, size_t limit, Scratch* scratch) {
  const float noise = scan_->query->gumbel ? canonical::kGumbelBound : 0;
  if (scan_->state[slice].max[kProcessed] + noise < threshold) return;
  for (int64_t chunk = begin(slice); chunk < end(slice); chunk += kChunk) {
    if (scratch->reached.size() > limit) return;
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
  if (!scan_->query->gumbel) return scratch->processed;
  const uint32_t first_id = static_cast<uint32_t>(scan_->slices->first_id + begin);
  kernels_.gumbel(scratch->processed, size, scan_->query->key, first_id, threshold, scratch->order);
  return scratch->order;
}

void CpuVocabulary::ScanSlice(size_t index, Scratch* scratch) {
  Slice& slice = scan_->state[index];
  slice.max = {-kInfinity, -kInfinity};
  slice.best_chunk = {begin(index), begin(index)};
  for (int64_t chunk = begin(index); chunk < end(index); chunk += kChunk) {
    const int size = static_cast<int>(std::min<int64_t>(kChunk, end(index) - chunk));
    slice.finite &= Process(chunk, size, scratch);
    for (const Logits which : {kProcessed, kRaw}) {
      const float max =
          kernels_.max(which == kRaw ? scan_->logits + chunk : scratch->processed, size);
      if (max <= slice.max[which]) continue;
      slice.max[which] = max;
      slice.best_chunk[which] = chunk;
    }
  }
}

bool CpuVocabulary::Process(int64_t begin, int size, Scratch* scratch) const {
  bool finite = kernels_.scale_logits(scan_->logits + begin, size,
                                      scan_->query->inverse_temperature, scratch->processed);
  const auto first =
      std::lower_bound(scan_->query->edits.begin(), scan_->query->edits.end(), begin,
                       [](const LogitEdit& edit, int64_t row) { return edit.row < row; });
  for (auto edit = first; edit != scan_->query->edits.end() && edit->row < begin + size; ++edit) {
    const float processed = EditedLogit(*edit, scan_->logits) * scan_->query->inverse_temperature;
    finite &= processed < kInfinity;
    scratch->processed[edit->row - begin] = processed;
  }
  return finite;
}

SliceSum CpuVocabulary::SumSlice(size_t slice, Logits which, Scratch* scratch) {
  SliceSum result{scan_->state[slice].max[which], 0};
  if (result.max == -kInfinity) return result;  // an empty slice or a wholly banned one
  alignas(64) float sums[16] = {};
  for (int64_t chunk = begin(slice); chunk < end(slice); chunk += kChunk) {
    const int size = static_cast<int>(std::min<int64_t>(kChunk, end(slice) - chunk));
    if (which == kProcessed) Process(chunk, size, scratch);
    kernels_.sum_exp(which == kRaw ? scan_->logits + chunk : scratch->processed, size, result.max,
                     sums);
  }
  result.sum = Tree16(sums);
  return result;
}

void CpuVocabulary::SelectBest(Logits which, int count) {
  merged_.clear();
  if (count <= 0) return;
  const float floor = SeedThreshold(which, count);
  for (Scratch& scratch : scratch_) scratch.best[which].Reset(count, floor);
  pool_.ParallelFor(static_cast<int64_t>(scan_->state.size()), [&](int64_t slice, int thread) {
    SelectFromSlice(static_cast<size_t>(slice), which, &scratch_[static_cast<size_t>(thread)]);
  });
  for (Scratch& scratch : scratch_) {
    scratch.best[which].Prune();
    const std::vector<Candidate>& kept = scratch.best[which].kept();
    merged_.insert(merged_.end(), kept.begin(), kept.end());
  }
  std::sort(merged_.begin(), merged_.end(), ComesBefore);
  merged_.resize(std::min(merged_.size(), static_cast<size_t>(count)));
}

// What the best candidates of the most promising chunk reach.
float CpuVocabulary::SeedThreshold(Logits which, int count) {
  const auto best =
      std::max_element(scan_->state.begin(), scan_->state.end(),
                       [&](const Slice& a, const Slice& b) { return a.max[which] < b.max[which]; });
  const size_t slice = static_cast<size_t>(best - scan_->state.begin());
  const int64_t chunk = best->best_chunk[which];
  Scratch* scratch = &scratch_.front();
  TopCandidates& seeds = scratch->best[which];
  seeds.Reset(count, -kInfinity);
  SelectFromChunk(chunk, static_cast<int>(std::min<int64_t>(kChunk, end(slice) - chunk)), which,
                  scratch);
  seeds.Prune();
  return seeds.threshold();
}

void CpuVocabulary::SelectFromSlice(size_t slice, Logits which, Scratch* scratch) {
  const bool noisy = which == kProcessed && scan_->query->gumbel;
  const float noise = noisy ? canonical::kGumbelBound : 0;
  if (scan_->state[slice].max[which] + noise < scratch->best[which].threshold()) return;
  for (int64_t chunk = begin(slice); chunk < end(slice); chunk += kChunk) {
    SelectFromChunk(chunk, static_cast<int>(std::min<int64_t>(kChunk, end(slice) - chunk)), which,
                    scratch);
  }
}

void CpuVocabulary::SelectFromChunk(int64_t begin, int size, Logits which, Scratch* scratch) {
  Process(begin, size, scratch);
  TopCandidates& best = scratch->best[which];
  const float* order =
      which == kRaw ? scan_->logits + begin : Orders(begin, size, best.threshold(), scratch);
  const int found = kernels_.select(order, size, best.threshold(), scratch->indices);
  for (int i = 0; i < found; ++i) {
    const int32_t index = scratch->indices[i];
    if (order[index] < best.threshold()) continue;  // it has risen meanwhile
    const int64_t row = begin + index;
    best.Offer({order[index], scratch->processed[index], scan_->logits[row],
                scan_->slices->first_id + static_cast<int32_t>(row)});
  }
}

}  // namespace facet
