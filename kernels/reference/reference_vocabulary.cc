#include "kernels/reference/reference_vocabulary.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/canonical_math.h"
#include "kernels/host/logit_edit.h"

namespace facet {
namespace {

bool IsUsable(float logit) { return logit < std::numeric_limits<float>::infinity(); }

std::vector<Candidate> ScoreAll(const float* logits, const VocabularySlices& slices,
                                const CandidateQuery& query) {
  std::vector<Candidate> all(slices.starts.back());
  for (size_t i = 0; i < all.size(); ++i) {
    all[i].raw = logits[i];
    all[i].processed = logits[i];
    all[i].id = slices.first_id + static_cast<int32_t>(i);
  }
  for (const LogitEdit& edit : query.edits) all[edit.row].processed = EditedLogit(edit, logits);
  for (Candidate& candidate : all) {
    candidate.processed *= query.inverse_temperature;
    candidate.order = candidate.processed;
    if (query.gumbel) candidate.order += GumbelNoise(query.key, candidate.id);
  }
  return all;
}

std::vector<Candidate> Best(std::vector<Candidate> all, int count) {
  std::sort(all.begin(), all.end(), ComesBefore);
  all.resize(std::min<size_t>(all.size(), std::max(count, 0)));
  return all;
}

SliceSum SumSlice(const std::vector<Candidate>& all, int64_t begin, int64_t end,
                  float Candidate::*logit) {
  SliceSum result{-std::numeric_limits<float>::infinity(), 0};
  for (int64_t i = begin; i < end; ++i) result.max = std::max(result.max, all[i].*logit);
  if (std::isinf(result.max)) return result;  // an empty slice or a wholly banned one
  float a[16] = {};
  for (int64_t i = begin; i < end; ++i) {
    a[(i - begin) % 16] += CanonicalExp(all[i].*logit - result.max);
  }
  result.sum = Tree16(a);
  return result;
}

std::vector<SliceSum> SumSlices(const std::vector<Candidate>& all,
                                const std::vector<int64_t>& starts, float Candidate::*logit) {
  std::vector<SliceSum> sums;
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    sums.push_back(SumSlice(all, starts[i], starts[i + 1], logit));
  }
  return sums;
}

}  // namespace

void FindCandidatesBySorting(const float* logits, const VocabularySlices& slices,
                             const CandidateQuery& query, CandidateReply* reply) {
  *reply = CandidateReply();
  std::vector<Candidate> all = ScoreAll(logits, slices, query);
  for (const Candidate& candidate : all) {
    reply->finite &= IsUsable(candidate.raw) && IsUsable(candidate.processed);
  }
  if (!reply->finite) return;
  if (query.sums) reply->sums = SumSlices(all, slices.starts, &Candidate::processed);
  if (query.raw_sums) reply->raw_sums = SumSlices(all, slices.starts, &Candidate::raw);
  reply->best = Best(all, query.count);
  for (Candidate& candidate : all) candidate.order = candidate.raw;
  reply->raw_best = Best(std::move(all), query.raw_count);
}

}  // namespace facet
