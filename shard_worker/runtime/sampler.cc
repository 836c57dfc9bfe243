#include "shard_worker/runtime/sampler.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "base/prng.h"
#include "base/status.h"
#include "kernels/canonical_math.h"
#include "kernels/sum_tree.h"

namespace facet {
namespace {

// Candidates asked for first where top_p or min_p decide how many are needed, and the factor by
// which a distribution too flat for them asks again.
constexpr int kFirstCandidates = 128;
constexpr int kCandidatesGrowth = 16;

bool Greedy(const SamplingParams& p) { return p.temperature == 0; }
bool Filters(const SamplingParams& p) { return p.top_k > 0 || p.top_p < 1 || p.min_p > 0; }

int FirstCount(const SamplingParams& p, int64_t vocabulary) {
  if (Greedy(p) || !Filters(p)) return 1;
  const int64_t count = p.top_k > 0 ? p.top_k : kFirstCandidates;
  return static_cast<int>(std::min(count, vocabulary));
}

bool Better(const Candidate& a, const Candidate& b) {
  return a.order != b.order ? a.order > b.order : a.id < b.id;
}

template <typename T>
void Write(std::span<const T> values, std::vector<std::byte>* out) {
  const auto count = static_cast<uint32_t>(values.size());
  const auto* head = reinterpret_cast<const std::byte*>(&count);
  out->insert(out->end(), head, head + sizeof(count));
  const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
  out->insert(out->end(), bytes, bytes + values.size_bytes());
}

// Reads what Write() wrote and appends it to *out.
template <typename T>
bool Read(std::span<const std::byte>* in, std::vector<T>* out) {
  uint32_t count = 0;
  if (in->size() < sizeof(count)) return false;
  std::memcpy(&count, in->data(), sizeof(count));
  *in = in->subspan(sizeof(count));
  if (in->size() / sizeof(T) < count) return false;
  const size_t before = out->size();
  out->resize(before + count);
  if (count > 0) std::memcpy(out->data() + before, in->data(), count * sizeof(T));
  *in = in->subspan(count * sizeof(T));
  return true;
}

SliceSum MergeSums(std::span<const SliceSum> sums) {
  if (sums.size() == 1) return sums[0];
  const int split = SplitPoint(0, static_cast<int>(sums.size()));
  const SliceSum a = MergeSums(sums.first(split));
  const SliceSum b = MergeSums(sums.subspan(split));
  const float max = std::max(a.max, b.max);
  if (max == -std::numeric_limits<float>::infinity()) return {max, 0};  // every id is banned
  return {max, a.sum * CanonicalExp(a.max - max) + b.sum * CanonicalExp(b.max - max)};
}

bool ReadReply(std::span<const std::byte>* in, Gathered* all) {
  if (in->empty()) return false;
  all->finite = all->finite && in->front() != std::byte{0};
  *in = in->subspan(1);
  return Read(in, &all->best) && Read(in, &all->raw_best) && Read(in, &all->sums) &&
         Read(in, &all->raw_sums) && Read(in, &all->scored);
}

void KeepBest(std::vector<Candidate>* candidates, size_t count) {
  std::sort(candidates->begin(), candidates->end(), Better);
  if (candidates->size() > count) candidates->resize(count);
}

const Candidate& Draw(std::span<const Candidate> survivors, uint64_t key) {
  const Candidate* chosen = nullptr;
  float chosen_order = 0;
  for (const Candidate& c : survivors) {
    const float order = c.processed + GumbelNoise(key, static_cast<uint32_t>(c.id));
    if (chosen == nullptr || order > chosen_order || (order == chosen_order && c.id < chosen->id)) {
      chosen = &c;
      chosen_order = order;
    }
  }
  return *chosen;
}

void WriteReply(const CandidateReply& reply, std::span<const float> scored,
                std::vector<std::byte>* out) {
  out->push_back(std::byte{reply.finite});
  Write(std::span(reply.best), out);
  Write(std::span(reply.raw_best), out);
  Write(std::span(reply.sums), out);
  Write(std::span(reply.raw_sums), out);
  Write(scored, out);
}

uint64_t KeyOf(const SampleRow& row) { return PositionKey(row.state->seed(), row.position + 1); }

}  // namespace

void Gathered::Clear() {
  best.clear();
  raw_best.clear();
  sums.clear();
  raw_sums.clear();
  scored.clear();
  finite = true;
}

Sampler::Sampler(Device* device, VocabularySlices slices, int64_t vocabulary)
    : device_(device), slices_(std::move(slices)), vocabulary_(vocabulary) {}

CandidateQuery Sampler::MakeQuery(const SampleRow& row, int count,
                                  std::span<const LogitEdit> edits) const {
  const SamplingParams& p = row.state->sampling();
  CandidateQuery query;
  query.edits = edits;
  query.count = count;
  if (!Greedy(p)) {
    query.inverse_temperature = 1 / p.temperature;
    query.gumbel = !Filters(p);
    query.key = KeyOf(row);
    query.sums = p.top_p < 1 && p.top_k <= 0;
  }
  query.raw_count = std::max(row.state->logprobs(), 0);
  query.raw_sums = row.state->logprobs() >= 0;
  return query;
}

float Sampler::RawLogit(Floats row_logits, TokenId id) const {
  float logit = 0;
  device_->CopyOut(Floats{row_logits.data + (id - slices_.first_id), 1}, std::span(&logit, 1));
  return logit;
}

std::span<CandidateReply> Sampler::MakeRoom(size_t replies) {
  found_.resize(std::max(found_.size(), replies));
  const std::span<CandidateReply> found = std::span(found_).first(replies);
  for (CandidateReply& reply : found) {
    reply.best.clear();
    reply.raw_best.clear();
    reply.sums.clear();
    reply.raw_sums.clear();
    reply.finite = true;
  }
  return found;
}

void Sampler::TakeBack(ScoredToken* token) {
  if (token->top.capacity() > 0) spare_.push_back(std::move(token->top));
}

void Sampler::Clear(size_t rows, std::vector<SampleOutcome>* outcomes) {
  for (SampleOutcome& outcome : *outcomes) {
    if (outcome.sampled) TakeBack(&*outcome.sampled);
    if (outcome.scored) TakeBack(&*outcome.scored);
  }
  outcomes->assign(rows, {});
}

std::span<const LogitEdit> Sampler::EditsOf(const SampleRow& row, size_t index) {
  edits_.resize(std::max(edits_.size(), index + 1));
  row.state->FindEdits(slices_.first_id, slices_.starts.back(), row.assumed, &edits_[index]);
  return edits_[index];
}

void Sampler::Look(Floats logits, const SampleRow& row, int count) {
  const int64_t size = slices_.starts.back();
  std::span<const LogitEdit> edits;
  if (row.sample) edits = EditsOf(row, 0);
  MakeRoom(1);
  device_->FindCandidates(logits, slices_, MakeQuery(row, count, edits), &found_[0]);
  float scored = 0;
  const bool mine =
      row.score && *row.score >= slices_.first_id && *row.score < slices_.first_id + size;
  if (mine) scored = RawLogit(logits, *row.score);
  WriteReply(found_[0], std::span(&scored, mine ? 1 : 0), &mine_);
}

absl::Status Sampler::Exchange(Communicator* communicator) {
  FACET_RETURN_IF_ERROR(communicator->AllGatherBytes(mine_, &replies_));
  rest_.assign(replies_.begin(), replies_.end());
  return absl::OkStatus();
}

absl::Status Sampler::ReadReplies() {
  all_.Clear();
  for (std::span<const std::byte>& reply : rest_) {
    if (!ReadReply(&reply, &all_)) return Internal("a rank's candidates are malformed");
  }
  return absl::OkStatus();
}

std::optional<size_t> Sampler::Survivors(const SamplingParams& p) {
  const std::vector<Candidate>& best = all_.best;
  const bool whole = p.top_k > 0 || static_cast<int64_t>(best.size()) == vocabulary_;
  weights_.clear();
  for (const Candidate& c : best) {
    weights_.push_back(CanonicalExp(c.processed - best[0].processed));
  }
  float total = 0;
  if (p.top_k > 0) {
    for (const float weight : weights_) total += weight;
  } else if (p.top_p < 1) {
    total = MergeSums(all_.sums).sum;
  }
  float mass = 0;
  for (size_t i = 0; i < best.size(); ++i) {
    if (p.top_p < 1 && i > 0 && mass >= p.top_p * total) return i;
    if (p.min_p > 0 && weights_[i] < p.min_p) return i;
    mass += weights_[i];
  }
  if (whole || (p.top_p < 1 && mass >= p.top_p * total)) return best.size();
  return std::nullopt;
}

std::optional<Candidate> Sampler::Choose(const SampleRow& row) {
  const SamplingParams& p = row.state->sampling();
  if (Greedy(p) || !Filters(p)) return all_.best.front();
  const std::optional<size_t> survivors = Survivors(p);
  if (!survivors.has_value()) return std::nullopt;
  return Draw(std::span(all_.best).first(*survivors), KeyOf(row));
}

ScoredToken Sampler::Score(TokenId id, float raw, const SequenceState& state) {
  ScoredToken token;
  token.id = id;
  if (state.logprobs() < 0) return token;
  const SliceSum sum = MergeSums(all_.raw_sums);
  const float log_sum = sum.max + CanonicalLog(sum.sum);
  token.logprob = raw - log_sum;
  if (all_.raw_best.empty()) return token;
  if (!spare_.empty()) {
    token.top = std::move(spare_.back());
    spare_.pop_back();
    token.top.clear();
  }
  for (const Candidate& c : all_.raw_best) token.top.emplace_back(c.id, c.raw - log_sum);
  return token;
}

bool Sampler::NeedsLogits(const SampleRow& row) {
  const SamplingParams& p = row.state->sampling();
  if (!row.sample || row.score) return true;
  // Without top_k, how many candidates top_p and min_p need is known only afterwards.
  return !Greedy(p) && Filters(p) && p.top_k <= 0;
}

bool Sampler::BestIsChosen(const SequenceStart& start) {
  const SamplingParams& p = start.sampling;
  return (Greedy(p) || !Filters(p)) && !Penalises(p) && start.logprobs < 0;
}

std::span<const CandidateQuery> Sampler::Queries(std::span<const SampleRow> rows) {
  queries_.clear();
  for (size_t i = 0; i < rows.size(); ++i) {
    const int count = FirstCount(rows[i].state->sampling(), vocabulary_);
    queries_.push_back(MakeQuery(rows[i], count, EditsOf(rows[i], i)));
  }
  return queries_;
}

absl::Status Sampler::Search(const AskHead& ask, std::span<const SampleRow> rows,
                             Communicator* communicator, std::vector<SampleOutcome>* outcomes) {
  const std::span<CandidateReply> found = MakeRoom(rows.size());
  ask(Queries(rows), found);
  mine_.clear();
  for (const CandidateReply& reply : found) WriteReply(reply, {}, &mine_);
  FACET_RETURN_IF_ERROR(Exchange(communicator));
  Clear(rows.size(), outcomes);
  for (size_t i = 0; i < rows.size(); ++i) {
    FACET_RETURN_IF_ERROR(ReadReplies());
    SampleOutcome& outcome = (*outcomes)[i];
    outcome.finite = all_.finite;
    if (!all_.finite) continue;
    KeepBest(&all_.best, static_cast<size_t>(queries_[i].count));
    KeepBest(&all_.raw_best, static_cast<size_t>(queries_[i].raw_count));
    const std::optional<Candidate> chosen = Choose(rows[i]);
    if (!chosen) return Internal("the best candidates do not decide");
    outcome.sampled = Score(chosen->id, chosen->raw, *rows[i].state);
  }
  return absl::OkStatus();
}

absl::Status Sampler::Run(Floats logits, std::span<const SampleRow> rows,
                          Communicator* communicator, std::vector<SampleOutcome>* outcomes) {
  const int64_t size = slices_.starts.back();
  Clear(rows.size(), outcomes);
  counts_.clear();
  open_.clear();
  for (size_t i = 0; i < rows.size(); ++i) {
    counts_.push_back(FirstCount(rows[i].state->sampling(), vocabulary_));
    open_.push_back(i);
  }
  while (!open_.empty()) {
    mine_.clear();
    for (const size_t i : open_) {
      Look(Floats{logits.data + static_cast<int64_t>(i) * size, size}, rows[i], counts_[i]);
    }
    FACET_RETURN_IF_ERROR(Exchange(communicator));
    size_t still_open = 0;
    for (const size_t i : open_) {
      const SampleRow& row = rows[i];
      SampleOutcome& outcome = (*outcomes)[i];
      FACET_RETURN_IF_ERROR(ReadReplies());
      outcome.finite = all_.finite;
      if (!all_.finite) continue;
      KeepBest(&all_.best, static_cast<size_t>(counts_[i]));
      KeepBest(&all_.raw_best, static_cast<size_t>(std::max(row.state->logprobs(), 0)));
      if (row.score) {
        if (all_.scored.size() != 1) return Internal("token {} has no single owner", *row.score);
        outcome.scored = Score(*row.score, all_.scored[0], *row.state);
      }
      if (!row.sample) continue;
      if (const std::optional<Candidate> chosen = Choose(row)) {
        outcome.sampled = Score(chosen->id, chosen->raw, *row.state);
      } else {
        const int64_t more = int64_t{counts_[i]} * kCandidatesGrowth;
        counts_[i] = static_cast<int>(std::min(more, vocabulary_));
        open_[still_open++] = i;
      }
    }
    open_.resize(still_open);
  }
  return absl::OkStatus();
}

}  // namespace facet
