#include "kernels/cpu/cpu_head.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/canonical_math.h"
#include "kernels/host/logit_edit.h"
#include "kernels/host/matrix_source.h"

namespace facet {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// With more rows the whole product costs hardly more than the first pass.
constexpr int kScreenedRowsMax = 4;
// Sixty-four candidates of real hidden states leave too many rows to complete.
constexpr int kScreenedCountMax = 16;
// Rows completed before any other, to have a threshold.
constexpr int kSeeds = 16;
// Half panels here and there take this many times as long to read as in one stream (measured).
constexpr double kCompletionCost = 2;
// Of the half panels: completing more costs more than reading everything.
constexpr double kCompletedMax = 0.25;
// The same of refining.
constexpr double kRefinedMax = 0.75;
// Fewer half panels are completed at once.
constexpr size_t kRefineFrom = 12;
// Of the rows of the head: where more reach the threshold, refining them costs too much.
constexpr int64_t kReachedPart = 8;
constexpr int64_t kReachedMin = 1024;
// Granules that refining reads.
constexpr int kRefinedGranules = 24;
// Keeps the bound's own rounding within its margin.
constexpr int64_t kBlocksMax = 4096;
// With one, a panel is needed sooner than the memory has brought it.
constexpr int kPanelsAhead = 2;
constexpr int kPanelsPerTask = 64;
constexpr int kHalvesPerTask = 16;

SearchKind KindOf(const CandidateQuery& query) {
  if (query.count > 1) return SearchKind::kTop;
  return query.gumbel ? SearchKind::kSampled : SearchKind::kGreedy;
}

// Whether the order of candidates is a monotonic function of the logits.
bool IsMonotonic(const CandidateQuery& query) {
  if (!(query.inverse_temperature > 0 && query.inverse_temperature < kInfinity)) return false;
  return std::all_of(query.edits.begin(), query.edits.end(), [](const LogitEdit& edit) {
    return edit.bias < kInfinity && edit.repetition > 0 && edit.repetition < kInfinity &&
           std::isfinite(edit.subtract);
  });
}

bool NeedsEveryLogit(const CandidateQuery& query) {
  return query.sums || query.raw_sums || query.raw_count > 0;
}

}  // namespace

void CpuHead::Search(const HeadSearch& search, std::span<CandidateReply> replies) {
  search_ = &search;
  head_ = static_cast<const PackedMatrix*>(search.head);
  reads_.rows += rows() * head_->rows();
  open_.resize(search.queries.size());
  std::iota(open_.begin(), open_.end(), 0);
  floors_.assign(search.queries.size(), -kInfinity);
  const bool screens = CanScreen() && Begin();
  Agree();
  if (screens) FinishScreening(replies);
  const int passes = fused_.Run(search, open_, replies);
  reads_.bytes += passes * static_cast<double>(head_->packed_bytes());
}

bool CpuHead::CanScreen() const {
  if (!IsSplit(head_->format()) || rows() > kScreenedRowsMax || search_->soft_cap > 0) return false;
  if (blocks() > kBlocksMax) return false;
  return std::all_of(
      search_->queries.begin(), search_->queries.end(), [&](const CandidateQuery& query) {
        return query.count > 0 && query.count <= kScreenedCountMax && query.count < head_->rows() &&
               !NeedsEveryLogit(query) && IsMonotonic(query);
      });
}

bool CpuHead::Begin() {
  layout_ = SplitLayoutOf(head_->format());
  split_ = &kernels_.split[head_->format() == PackedFormat::kQ8Split ? 0 : 1];
  planned_ = PlanGranules();
  if (planned_ < 0) return false;
  if (!activations_.Quantize(kernels_, *head_, search_->x.data, rows())) return false;
  activations_.ChooseGranules(planned_);
  FirstPass();
  reads_.screened += rows() * head_->rows();
  reads_.bytes += FirstShare() * static_cast<double>(head_->packed_bytes());
  Reserve();
  for (int row = 0; row < rows(); ++row) Seed(row);
  return true;
}

// What grows with the rows that must be looked at again is as large as it can become from the
// first search on.
void CpuHead::Reserve() {
  reached_max_ = static_cast<size_t>(std::max(head_->rows() / kReachedPart, kReachedMin));
  vocabulary_.Reserve(kScreenedCountMax + kSeeds, reached_max_ + ChunkSearch::kChunk);
  fused_.Reserve(*search_, kScreenedRowsMax, kScreenedCountMax);
  questions_.resize(kScreenedRowsMax);
  for (Question& asked : questions_) asked.reached.reserve(reached_max_);
  wanted_.reserve(reached_max_);
  halves_.reserve(reached_max_);
  const size_t halves = std::min(reached_max_, 2 * static_cast<size_t>(head_->panels()));
  lanes_.resize(std::max(lanes_.size(), halves * kHalfPanel));
}

void CpuHead::Agree() {
  if (search_->agree) search_->agree(floors_);
}

// Removes from open_ the rows that it answers.
void CpuHead::FinishScreening(std::span<CandidateReply> replies) {
  std::erase_if(open_, [&](int row) {
    const bool found = Finish(row, &replies[static_cast<size_t>(row)]);
    reads_.completed += question(row).completed * kHalfPanel;
    reads_.bytes += SecondShare(question(row)) * static_cast<double>(head_->packed_bytes());
    Record(row, found);
    return found;
  });
}

int CpuHead::PlanGranules() {
  int planned = 0;
  bool pays = true;
  for (const CandidateQuery& query : search_->queries) {
    const int wanted = policy_.Granules(KindOf(query), granules());
    pays &= wanted >= 0;
    planned = std::max(planned, wanted);
  }
  return pays ? planned : -1;
}

double CpuHead::FirstShare() const {
  const auto whole = static_cast<double>(head_->panel_bytes() + head_->low_bytes());
  const auto narrow = static_cast<double>(layout_.narrow_bytes(blocks()));
  return (narrow + static_cast<double>(planned_ * SplitLayout::kGranuleBytes)) / whole;
}

double CpuHead::SecondShare(const Question& asked) const {
  const auto whole = static_cast<double>(head_->panel_bytes() + head_->low_bytes());
  // A granule that is refined is read with its scales.
  const double refined = (SplitLayout::kGranuleBytes + layout_.whole.scale_bytes) / whole;
  return HalvesShare(static_cast<size_t>(asked.completed)) +
         kRefinedGranules * refined * HalvesShare(static_cast<size_t>(asked.refined));
}

void CpuHead::Record(int row, bool found) {
  const auto whole = static_cast<double>(head_->panel_bytes() + head_->low_bytes());
  const Question& asked = question(row);
  ScreeningPolicy::Cost cost;
  cost.granules = planned_ * SplitLayout::kGranuleBytes / whole;
  cost.first = FirstShare();
  cost.completed = kCompletionCost * rows() * SecondShare(asked) + (found ? 0 : 1);
  policy_.Record(KindOf(*asked.query), cost);
}

void CpuHead::FirstPass() {
  const int64_t panels = head_->panels();
  pool_.ParallelFor((panels + kPanelsPerTask - 1) / kPanelsPerTask, [&](int64_t task, int) {
    const int64_t end = std::min(panels, (task + 1) * kPanelsPerTask);
    // One thread takes the tasks in their order.
    const int64_t fetch_end = pool_.threads() == 1 ? panels : end;
    for (int64_t panel = task * kPanelsPerTask; panel < end; ++panel) RunPanel(panel, fetch_end);
  });
}

void CpuHead::RunPanel(int64_t panel, int64_t fetch_end) const {
  NarrowArgs args;
  args.panel = head_->panel(panel);
  args.low = head_->low(panel);
  args.ahead = panel + kPanelsAhead < fetch_end ? kPanelsAhead : 0;
  args.blocks = blocks();
  args.columns = head_->panel_columns(panel);
  args.chosen = activations_.chosen();
  args.out_stride = head_->rows();
  for (const HeadActivations::Tile& tile : activations_.tiles()) {
    args.q = tile.q.data();
    args.scale = tile.scale.data();
    args.start = tile.start.data();
    args.spread = tile.spread.data();
    args.out = bounds(tile.first_row) + panel * kPanelColumns;
    split_->narrow[tile.rows - 1](args);
    args.ahead = 0;  // the first tile has fetched it
  }
}

void CpuHead::Seed(int row) {
  Question& asked = question(row);
  const CandidateQuery& query = search_->queries[static_cast<size_t>(row)];
  asked.query = &query;
  asked.bounded = false;
  asked.has_reached = false;
  asked.refined = 0;
  asked.completed = 0;
  asked.best.Reset(query.count, -kInfinity);
  const int count = std::min<int>(query.count + kSeeds, static_cast<int>(head_->rows()));
  if (!vocabulary_.Seed(bounds(row), *search_->slices, query, count, &asked.scan, &wanted_)) return;
  Complete(row, wanted_);
  asked.best.Prune();
  asked.bounded = asked.best.threshold() > -kInfinity;
  if (!asked.bounded) return;
  if (query.gumbel) {  // the noise decides who is promising
    Reach(row);
    if (!asked.bounded) return;
    CompleteFirst(row, static_cast<size_t>(count));
  }
  floors_[static_cast<size_t>(row)] = asked.best.threshold();
}

bool CpuHead::Finish(int row, CandidateReply* reply) {
  Question& asked = question(row);
  if (!asked.bounded) return false;
  asked.best.Raise(floors_[static_cast<size_t>(row)]);
  if (!asked.has_reached) Reach(row);
  if (!asked.bounded) return false;
  WantReached(row);
  if (HalvesShare(halves_.size()) > kRefinedMax) return false;
  if (halves_.size() >= kRefineFrom) {
    Refine(row);
    WantReached(row);
  }
  if (HalvesShare(halves_.size()) > kCompletedMax) return false;
  Complete(row, wanted_);
  asked.best.Prune();
  Clear(reply);
  reply->best.reserve(static_cast<size_t>(asked.query->count));
  reply->best = asked.best.kept();
  std::sort(reply->best.begin(), reply->best.end(), ComesBefore);
  return true;
}

void CpuHead::Reach(int row) {
  Question& asked = question(row);
  asked.bounded =
      vocabulary_.Reach(asked.scan, asked.best.threshold(), reached_max_, &asked.reached);
  asked.has_reached = true;
}

void CpuHead::CompleteFirst(int row, size_t count) {
  std::vector<CpuVocabulary::Reached>& reached = question(row).reached;
  if (reached.size() <= 2 * count) return;
  const auto middle = reached.begin() + static_cast<ptrdiff_t>(count);
  std::nth_element(reached.begin(), middle, reached.end(),
                   [](const auto& a, const auto& b) { return a.order > b.order; });
  wanted_.clear();
  for (auto it = reached.begin(); it != middle; ++it) wanted_.push_back(it->row);
  std::sort(wanted_.begin(), wanted_.end());
  reached.erase(reached.begin(), middle);
  Complete(row, wanted_);
  question(row).best.Prune();
}

void CpuHead::WantReached(int row) {
  Question& asked = question(row);
  std::erase_if(asked.reached, [&](const CpuVocabulary::Reached& reached) {
    return reached.order < asked.best.threshold();
  });
  wanted_.clear();
  for (const CpuVocabulary::Reached& reached : asked.reached) wanted_.push_back(reached.row);
  std::sort(wanted_.begin(), wanted_.end());
  SetHalves(wanted_);
}

void CpuHead::SetHalves(std::span<const int32_t> head_rows) {
  halves_.clear();
  for (const int32_t head_row : head_rows) {
    const int32_t half = head_row / kHalfPanel;
    if (halves_.empty() || halves_.back() != half) halves_.push_back(half);
  }
}

void CpuHead::Refine(int row) {
  Question& asked = question(row);
  const std::span<const RefinedPart> parts = activations_.Refine(row, kRefinedGranules);
  const auto count = static_cast<int64_t>(halves_.size());
  asked.refined += count;
  pool_.ParallelFor((count + kHalvesPerTask - 1) / kHalvesPerTask, [&](int64_t task, int) {
    const int64_t end = std::min(count, (task + 1) * kHalvesPerTask);
    for (int64_t i = task * kHalvesPerTask; i < end; ++i) RefineHalf(row, parts, i);
  });
  std::sort(asked.reached.begin(), asked.reached.end(),
            [](const auto& a, const auto& b) { return a.row < b.row; });
  size_t at = 0;
  for (CpuVocabulary::Reached& reached : asked.reached) {
    while (halves_[at] != reached.row / kHalfPanel) ++at;
    const float bound = lanes_[at * kHalfPanel + static_cast<size_t>(reached.row % kHalfPanel)];
    reached.order = Judge(*asked.query, reached.row, bound).order;
  }
}

void CpuHead::RefineHalf(int row, std::span<const RefinedPart> parts, int64_t index) {
  const auto at = static_cast<size_t>(index);
  const int64_t first = int64_t{halves_[at]} * kHalfPanel;
  RefineArgs args;
  args.panel = head_->panel(halves_[at] / 2);
  args.low = head_->low(halves_[at] / 2);
  args.half = halves_[at] % 2;
  if (at + 1 < halves_.size()) {
    args.next = head_->panel(halves_[at + 1] / 2);
    args.next_low = head_->low(halves_[at + 1] / 2);
    args.next_half = halves_[at + 1] % 2;
  }
  args.parts = parts.data();
  args.part_count = static_cast<int>(parts.size());
  args.q = activations_.row(row).q;
  args.upper = lanes_.data() + at * kHalfPanel;
  std::copy_n(bounds(row) + first, std::min<int64_t>(kHalfPanel, head_->rows() - first),
              args.upper);
  split_->refine(args);
}

void CpuHead::Complete(int row, std::span<const int32_t> head_rows) {
  Question& asked = question(row);
  SetHalves(head_rows);
  const auto count = static_cast<int64_t>(halves_.size());
  asked.completed += count;
  pool_.ParallelFor((count + kHalvesPerTask - 1) / kHalvesPerTask, [&](int64_t task, int) {
    const int64_t end = std::min(count, (task + 1) * kHalvesPerTask);
    for (int64_t i = task * kHalvesPerTask; i < end; ++i) CompleteHalf(row, i);
  });
  size_t at = 0;
  for (const int32_t head_row : head_rows) {
    while (halves_[at] != head_row / kHalfPanel) ++at;
    const size_t lane = static_cast<size_t>(head_row % kHalfPanel);
    const Candidate candidate = Judge(*asked.query, head_row, lanes_[at * kHalfPanel + lane]);
    if (candidate.order >= asked.best.threshold()) asked.best.Offer(candidate);
    bounds(row)[head_row] = -kInfinity;  // reaches no threshold from now on
  }
}

void CpuHead::CompleteHalf(int row, int64_t index) {
  const auto at = static_cast<size_t>(index);
  CompleteArgs args;
  args.panel = head_->panel(halves_[at] / 2);
  args.low = head_->low(halves_[at] / 2);
  args.half = halves_[at] % 2;
  if (at + 1 < halves_.size()) {
    args.next = head_->panel(halves_[at + 1] / 2);
    args.next_low = head_->low(halves_[at + 1] / 2);
    args.next_half = halves_[at + 1] % 2;
  }
  args.blocks = blocks();
  args.tile = &activations_.row(row);
  args.out = lanes_.data() + at * kHalfPanel;
  split_->complete(args);
}

Candidate CpuHead::Judge(const CandidateQuery& query, int32_t head_row, float raw) const {
  Candidate candidate;
  candidate.raw = raw;
  candidate.id = search_->slices->first_id + head_row;
  const auto edit =
      std::lower_bound(query.edits.begin(), query.edits.end(), head_row,
                       [](const LogitEdit& e, int32_t wanted) { return e.row < wanted; });
  const bool edited = edit != query.edits.end() && edit->row == head_row;
  candidate.processed = (edited ? EditedLogit(*edit, raw) : raw) * query.inverse_temperature;
  candidate.order = candidate.processed;
  if (query.gumbel) {
    candidate.order += GumbelNoise(query.key, static_cast<uint32_t>(candidate.id));
  }
  return candidate;
}

}  // namespace facet
