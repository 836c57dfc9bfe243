#include "kernels/cpu/cpu_vocabulary.h"

#include <algorithm>
#include <limits>

#include "kernels/canonical_math.h"
#include "kernels/host/logit_edit.h"

namespace facet {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

CpuVocabulary::CpuVocabulary(const KernelTable& kernels, ThreadPool* pool)
    : kernels_(kernels),
      pool_(*pool),
      scratch_(static_cast<size_t>(pool->threads()), Scratch(kernels)),
      findings_(scratch_.size()) {}

void CpuVocabulary::Reserve(int count, size_t reached) {
  merged_.reserve(static_cast<size_t>(count) * scratch_.size());
  for (Scratch& scratch : scratch_) {
    scratch.best.Reset(count, -kInfinity);
    scratch.reached.reserve(reached);
  }
}

void CpuVocabulary::Find(const float* logits, const VocabularySlices& slices,
                         const CandidateQuery& query, CandidateReply* reply) {
  const size_t count = slices.starts.size() - 1;
  Clear(reply);
  if (query.sums) reply->sums.resize(count);
  if (query.raw_sums) reply->raw_sums.resize(count);
  for (RowFindings& found : findings_) found.Reset(query);
  pool_.ParallelFor(static_cast<int64_t>(count), [&](int64_t i, int thread) {
    const auto index = static_cast<size_t>(i);
    const LogitChunk slice = SliceOf(logits, slices, index);
    ChunkSearch& search = scratch_[static_cast<size_t>(thread)].search;
    RowFindings* found = &findings_[static_cast<size_t>(thread)];
    ForEachChunk(
        slice, [&](const LogitChunk& chunk) { search.Look(query, chunk, slices.first_id, found); });
    if (query.sums) reply->sums[index] = search.Sum(query, slice, ChunkSearch::kProcessed);
    if (query.raw_sums) reply->raw_sums[index] = search.Sum(query, slice, ChunkSearch::kRaw);
  });
  Merge(findings_, query, reply);
}

bool CpuVocabulary::Seed(const float* bounds, const VocabularySlices& slices,
                         const CandidateQuery& query, int count, Scan* scan,
                         std::vector<int32_t>* rows) {
  scan->bounds = bounds;
  scan->slices = &slices;
  scan->query = &query;
  scan->state.assign(slices.starts.size() - 1, Slice());
  rows->clear();
  pool_.ParallelFor(static_cast<int64_t>(scan->state.size()), [&](int64_t i, int thread) {
    const auto index = static_cast<size_t>(i);
    ScanSlice(*scan, index, &scratch_[static_cast<size_t>(thread)].search, &scan->state[index]);
  });
  for (const Slice& slice : scan->state) {
    if (!slice.finite) return false;
  }
  if (query.gumbel) {  // the noise of all is looked at once, in Reach()
    SeedThreshold(*scan, count);
    merged_ = scratch_.front().best.kept();
  } else {
    SelectBest(*scan, count);
  }
  for (const Candidate& candidate : merged_) rows->push_back(candidate.id - slices.first_id);
  std::sort(rows->begin(), rows->end());
  return true;
}

void CpuVocabulary::ScanSlice(const Scan& scan, size_t index, ChunkSearch* search,
                              Slice* slice) const {
  slice->max = -kInfinity;
  slice->best_chunk = scan.slices->starts[index];
  ForEachChunk(SliceOf(scan.bounds, *scan.slices, index), [&](const LogitChunk& chunk) {
    slice->finite &= search->Process(*scan.query, chunk);
    const float max = kernels_.max(search->processed(), chunk.size);
    if (max <= slice->max) return;
    slice->max = max;
    slice->best_chunk = chunk.begin;
  });
}

float CpuVocabulary::SeedThreshold(const Scan& scan, int count) {
  const auto best = std::max_element(scan.state.begin(), scan.state.end(),
                                     [](const Slice& a, const Slice& b) { return a.max < b.max; });
  const int64_t end = scan.slices->starts[static_cast<size_t>(best - scan.state.begin()) + 1];
  const int64_t begin = best->best_chunk;
  const LogitChunk chunk = {scan.bounds + begin, begin,
                            std::min<int64_t>(ChunkSearch::kChunk, end - begin)};
  Scratch& scratch = scratch_.front();
  scratch.best.Reset(count, -kInfinity);
  scratch.search.Process(*scan.query, chunk);
  scratch.search.Select(*scan.query, chunk, scan.slices->first_id, &scratch.best);
  scratch.best.Prune();
  return scratch.best.threshold();
}

void CpuVocabulary::SelectBest(const Scan& scan, int count) {
  const float floor = SeedThreshold(scan, count);
  for (Scratch& scratch : scratch_) scratch.best.Reset(count, floor);
  pool_.ParallelFor(static_cast<int64_t>(scan.state.size()), [&](int64_t i, int thread) {
    const auto index = static_cast<size_t>(i);
    Scratch& scratch = scratch_[static_cast<size_t>(thread)];
    if (scan.state[index].max < scratch.best.threshold()) return;
    ForEachChunk(SliceOf(scan.bounds, *scan.slices, index), [&](const LogitChunk& chunk) {
      scratch.search.Process(*scan.query, chunk);
      scratch.search.Select(*scan.query, chunk, scan.slices->first_id, &scratch.best);
    });
  });
  merged_.clear();
  for (Scratch& scratch : scratch_) {
    scratch.best.Prune();
    const std::vector<Candidate>& kept = scratch.best.kept();
    merged_.insert(merged_.end(), kept.begin(), kept.end());
  }
  std::sort(merged_.begin(), merged_.end(), ComesBefore);
  merged_.resize(std::min(merged_.size(), static_cast<size_t>(count)));
}

bool CpuVocabulary::Reach(const Scan& scan, float threshold, size_t limit,
                          std::vector<Reached>* reached) {
  for (Scratch& scratch : scratch_) scratch.reached.clear();
  pool_.ParallelFor(static_cast<int64_t>(scan.state.size()), [&](int64_t slice, int thread) {
    ReachInSlice(scan, static_cast<size_t>(slice), threshold, limit,
                 &scratch_[static_cast<size_t>(thread)]);
  });
  reached->clear();
  for (const Scratch& scratch : scratch_) {
    if (reached->size() + scratch.reached.size() > limit) return false;
    reached->insert(reached->end(), scratch.reached.begin(), scratch.reached.end());
  }
  return true;
}

void CpuVocabulary::ReachInSlice(const Scan& scan, size_t slice, float threshold, size_t limit,
                                 Scratch* scratch) const {
  const float noise = scan.query->gumbel ? canonical::kGumbelBound : 0;
  if (scan.state[slice].max + noise < threshold) return;
  ForEachChunk(SliceOf(scan.bounds, *scan.slices, slice), [&](const LogitChunk& chunk) {
    if (scratch->reached.size() > limit) return;
    ChunkSearch& search = scratch->search;
    search.Process(*scan.query, chunk);
    const float* order = search.Orders(*scan.query, chunk, scan.slices->first_id, threshold);
    for (const int32_t index : search.Reaching(order, chunk.size, threshold)) {
      scratch->reached.push_back({order[index], static_cast<int32_t>(chunk.begin) + index});
    }
  });
}

}  // namespace facet
