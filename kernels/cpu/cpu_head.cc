#include "kernels/cpu/cpu_head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
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
// Below this no partial sum of a product can overflow, whatever the weights.
constexpr double kActivationsMax = 1e25;
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

double Norm(const int8_t* q, int size) {
  int squares = 0;
  for (int k = 0; k < size; ++k) squares += q[k] * q[k];
  return std::sqrt(squares);
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
  if (CanScreen()) Screen(replies);
  if (open_.empty()) return;
  // One row's product leaves the others' unread; those of several rows are read together.
  const int first = open_.size() == 1 ? open_.front() : 0;
  WholeProduct(first, open_.size() == 1 ? 1 : rows());
  for (const int row : open_) {
    const auto index = static_cast<size_t>(row);
    vocabulary_.Find(logits(row), *search.slices, search.queries[index], &replies[index]);
  }
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

void CpuHead::WholeProduct(int first_row, int rows) {
  const CpuProduct::Part part = {head_, logits(first_row), head_->rows(), 0};
  reads_.bytes += static_cast<double>(head_->packed_bytes());
  product_.Run(std::span(&part, 1), search_->x.data + first_row * head_->columns(), rows);
  if (search_->soft_cap <= 0) return;
  constexpr int64_t kStep = 4096;
  const int64_t size = rows * head_->rows();
  pool_.ParallelFor((size + kStep - 1) / kStep, [&](int64_t i, int) {
    kernels_.soft_cap(logits(first_row) + i * kStep, std::min(kStep, size - i * kStep),
                      search_->soft_cap);
  });
}

// Removes from open_ the rows that it answers.
void CpuHead::Screen(std::span<CandidateReply> replies) {
  layout_ = SplitLayoutOf(head_->format());
  split_ = &kernels_.split[head_->format() == PackedFormat::kQ8Split ? 0 : 1];
  const int planned = PlanGranules();
  if (planned < 0 || !Quantize()) return;
  ChooseGranules(planned);
  FirstPass();
  reads_.screened += rows() * head_->rows();
  const double panel_bytes = static_cast<double>(head_->panel_bytes() + head_->low_bytes());
  ScreeningPolicy::Cost cost;
  cost.granules = planned * SplitLayout::kGranuleBytes / panel_bytes;
  cost.first = static_cast<double>(layout_.narrow_bytes(blocks())) / panel_bytes + cost.granules;
  reads_.bytes += cost.first * static_cast<double>(head_->packed_bytes());
  std::erase_if(open_, [&](int row) {
    const auto index = static_cast<size_t>(row);
    halves_read_ = 0;
    const bool found = SearchRow(row, &replies[index]);
    reads_.completed += halves_read_ * kHalfPanel;
    reads_.bytes += HalvesShare(halves_read_) * static_cast<double>(head_->packed_bytes());
    cost.completed = kCompletionCost * rows() * HalvesShare(halves_read_) + (found ? 0 : 1);
    policy_.Record(KindOf(search_->queries[index]), cost);
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

void CpuHead::SetTile(const float* x, int64_t columns, Row* row) {
  const auto blocks = static_cast<size_t>(columns / kBlockColumns);
  row->q.resize(static_cast<size_t>(columns));
  row->scale.resize(blocks);
  row->scaled_sum.resize(blocks);
  for (std::vector<int32_t>& sums : row->offset_sums) sums.resize(blocks);
  row->tile = {.rows = 1,
               .x = x,
               .columns = columns,
               .q = row->q.data(),
               .scale = row->scale.data(),
               .scaled_sum = row->scaled_sum.data(),
               .offset_sum = {row->offset_sums[0].data(), row->offset_sums[1].data(),
                              row->offset_sums[2].data()}};
}

bool CpuHead::Quantize() {
  const int64_t columns = head_->columns();
  rows_.resize(std::max(rows_.size(), search_->queries.size()));
  for (int r = 0; r < rows(); ++r) {
    Row& row = rows_[static_cast<size_t>(r)];
    SetTile(search_->x.data + r * columns, columns, &row);
    kernels_.quantize_tile(row.tile);
    double sum = 0;
    for (const float scale : row.scale) sum += double{scale};
    if (!(sum < kActivationsMax)) return false;
  }
  return true;
}

// The granules with the largest shares of the rows' squared activations.
void CpuHead::ChooseGranules(int count) {
  const int size = 32 / layout_.granules;
  energies_.assign(static_cast<size_t>(granules()), 0);
  for (int r = 0; r < rows(); ++r) {
    const Row& row = rows_[static_cast<size_t>(r)];
    double total = 0;
    const auto energy = [&](size_t granule) {
      const int8_t* q = row.q.data() + granule * static_cast<size_t>(size);
      const double norm =
          double{row.scale[granule / static_cast<size_t>(layout_.granules)]} * Norm(q, size);
      return norm * norm;
    };
    for (size_t g = 0; g < energies_.size(); ++g) total += energy(g);
    if (total <= 0) continue;
    for (size_t g = 0; g < energies_.size(); ++g) energies_[g] += energy(g) / total;
  }
  ranking_.resize(energies_.size());
  std::iota(ranking_.begin(), ranking_.end(), 0);
  const auto larger = [&](int32_t a, int32_t b) {
    const double x = energies_[static_cast<size_t>(a)], y = energies_[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  const auto end = ranking_.begin() + std::min(count, granules());
  std::partial_sort(ranking_.begin(), end, ranking_.end(), larger);
  chosen_.assign(static_cast<size_t>(blocks()), 0);
  for (auto it = ranking_.begin(); it != end; ++it) {
    const int32_t block = *it / layout_.granules;
    chosen_[static_cast<size_t>(block)] |= static_cast<uint8_t>(1 << (*it % layout_.granules));
  }
}

void CpuHead::FirstPass() {
  const int count = (rows() + kNarrowRows - 1) / kNarrowRows;
  tiles_.resize(static_cast<size_t>(count));
  for (int i = 0, first = 0; i < count; ++i) {
    Tile& tile = tiles_[static_cast<size_t>(i)];
    tile.first_row = first;
    tile.rows = rows() / count + (i < rows() % count ? 1 : 0);
    first += tile.rows;
    FillTile(&tile);
  }
  const int64_t panels = head_->panels();
  pool_.ParallelFor((panels + kPanelsPerTask - 1) / kPanelsPerTask, [&](int64_t task, int) {
    const int64_t end = std::min(panels, (task + 1) * kPanelsPerTask);
    for (int64_t panel = task * kPanelsPerTask; panel < end; ++panel) RunPanel(panel, end);
  });
}

void CpuHead::RunPanel(int64_t panel, int64_t end) const {
  NarrowArgs args;
  args.panel = head_->panel(panel);
  args.low = head_->low(panel);
  args.ahead = panel + kPanelsAhead < end ? kPanelsAhead : 0;
  args.blocks = blocks();
  args.columns = head_->panel_columns(panel);
  args.chosen = chosen_.data();
  args.out_stride = head_->rows();
  for (const Tile& tile : tiles_) {
    args.q = tile.q.data();
    args.scale = tile.scale.data();
    args.start = tile.start.data();
    args.spread = tile.spread.data();
    args.out = logits(tile.first_row) + panel * kPanelColumns;
    split_->narrow[tile.rows - 1](args);
    args.ahead = 0;  // the first tile has fetched it
  }
}

void CpuHead::FillTile(Tile* tile) const {
  const int rows = tile->rows;
  const int parts = layout_.whole.scales_per_block;
  const auto units = static_cast<size_t>(blocks() * parts * rows);
  tile->q.resize(static_cast<size_t>(head_->columns() * rows));
  tile->scale.resize(static_cast<size_t>(blocks() * rows));
  tile->start.resize(units);
  tile->spread.resize(units);
  for (int r = 0; r < rows; ++r) {
    const Row& row = rows_[static_cast<size_t>(tile->first_row + r)];
    for (int64_t group = 0; group < head_->columns() / 4; ++group) {
      std::memcpy(&tile->q[static_cast<size_t>(4 * (group * rows + r))],
                  &row.q[static_cast<size_t>(4 * group)], 4);
    }
    for (int64_t b = 0; b < blocks(); ++b) {
      tile->scale[static_cast<size_t>(b * rows + r)] = row.scale[static_cast<size_t>(b)];
      for (int part = 0; part < parts; ++part) {
        const auto at = static_cast<size_t>((b * parts + part) * rows + r);
        FillPart(row, b, part, &tile->start[at], &tile->spread[at]);
      }
    }
  }
}

// The part's dot product with what its weights are taken for beside their high bits, and the
// factor of (scale x residual) in the bound. kernels/README.md derives the margins.
void CpuHead::FillPart(const Row& row, int64_t block, int part, int32_t* start,
                       float* spread) const {
  const int parts = layout_.whole.scales_per_block;
  const int size = 32 / layout_.granules;
  const int per_part = layout_.granules / parts;
  int sum = 0, unread_sum = 0, squares = 0, unread_squares = 0;
  for (int g = per_part * part; g < per_part * (part + 1); ++g) {
    const bool read = (chosen_[static_cast<size_t>(block)] >> g & 1) != 0;
    const int8_t* q = row.q.data() + block * 32 + g * size;
    for (int k = 0; k < size; ++k) {
      sum += q[k];
      squares += q[k] * q[k];
      if (read) continue;
      unread_sum += q[k];
      unread_squares += q[k] * q[k];
    }
  }
  *start = layout_.center() * unread_sum - layout_.whole.offset * sum;
  const double rounding = static_cast<double>(blocks() * parts + 16) * 0x1p-14;
  const double norm = std::sqrt(unread_squares) + rounding * std::sqrt(squares);
  const double scale = double{row.scale[static_cast<size_t>(block)]} / kResidualUnits;
  *spread = static_cast<float>(scale * norm * (1 + 0x1p-8));
}

bool CpuHead::SearchRow(int row, CandidateReply* reply) {
  const auto index = static_cast<size_t>(row);
  query_ = &search_->queries[index];
  *reply = CandidateReply();
  best_.Reset(query_->count, -kInfinity);
  CandidateQuery seeds = *query_;
  seeds.count = std::min<int>(query_->count + kSeeds, static_cast<int>(head_->rows()));
  if (!vocabulary_.Seed(logits(row), *search_->slices, seeds, &wanted_)) return false;
  Complete(row, wanted_);
  best_.Prune();
  if (!(best_.threshold() > -kInfinity)) return false;
  vocabulary_.Reach(best_.threshold(), &reached_);
  CompleteFirst(row, static_cast<size_t>(seeds.count));
  wanted_.clear();
  for (const CpuVocabulary::Reached& reached : reached_) {
    if (reached.order >= best_.threshold()) wanted_.push_back(reached.row);
  }
  std::sort(wanted_.begin(), wanted_.end());
  if (HalvesShare(CountHalves(wanted_)) > kCompletedMax) return false;
  Complete(row, wanted_);
  best_.Prune();
  reply->best = best_.kept();
  std::sort(reply->best.begin(), reply->best.end(), ComesBefore);
  return true;
}

// Of many rows that reach the threshold, the most promising raise it.
void CpuHead::CompleteFirst(int row, size_t count) {
  if (reached_.size() <= 2 * count) return;
  const auto middle = reached_.begin() + static_cast<ptrdiff_t>(count);
  std::nth_element(reached_.begin(), middle, reached_.end(),
                   [](const auto& a, const auto& b) { return a.order > b.order; });
  wanted_.clear();
  for (auto it = reached_.begin(); it != middle; ++it) wanted_.push_back(it->row);
  std::sort(wanted_.begin(), wanted_.end());
  reached_.erase(reached_.begin(), middle);
  Complete(row, wanted_);
  best_.Prune();
}

int64_t CpuHead::CountHalves(std::span<const int32_t> head_rows) const {
  int64_t count = 0;
  int32_t last = -1;
  for (const int32_t row : head_rows) {
    count += row / kHalfPanel != last ? 1 : 0;
    last = row / kHalfPanel;
  }
  return count;
}

void CpuHead::Complete(int row, std::span<const int32_t> head_rows) {
  halves_.clear();
  for (const int32_t head_row : head_rows) {
    const int32_t half = head_row / kHalfPanel;
    if (halves_.empty() || halves_.back() != half) halves_.push_back(half);
  }
  halves_read_ += static_cast<int64_t>(halves_.size());
  exact_.resize(std::max(exact_.size(), halves_.size() * kHalfPanel));
  const auto count = static_cast<int64_t>(halves_.size());
  pool_.ParallelFor((count + kHalvesPerTask - 1) / kHalvesPerTask, [&](int64_t task, int) {
    const int64_t end = std::min(count, (task + 1) * kHalvesPerTask);
    for (int64_t i = task * kHalvesPerTask; i < end; ++i) CompleteHalf(row, i);
  });
  size_t at = 0;
  for (const int32_t head_row : head_rows) {
    while (halves_[at] != head_row / kHalfPanel) ++at;
    const size_t lane = static_cast<size_t>(head_row % kHalfPanel);
    const Candidate candidate = Judge(head_row, exact_[at * kHalfPanel + lane]);
    if (candidate.order >= best_.threshold()) best_.Offer(candidate);
    logits(row)[head_row] = -kInfinity;  // reaches no threshold from now on
  }
}

void CpuHead::CompleteHalf(int row, int64_t index) {
  const Row& from = rows_[static_cast<size_t>(row)];
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
  args.tile = &from.tile;
  args.out = exact_.data() + at * kHalfPanel;
  split_->complete(args);
}

Candidate CpuHead::Judge(int32_t head_row, float raw) const {
  Candidate candidate;
  candidate.raw = raw;
  candidate.id = search_->slices->first_id + head_row;
  const auto edit =
      std::lower_bound(query_->edits.begin(), query_->edits.end(), head_row,
                       [](const LogitEdit& e, int32_t wanted) { return e.row < wanted; });
  const bool edited = edit != query_->edits.end() && edit->row == head_row;
  candidate.processed = (edited ? EditedLogit(*edit, raw) : raw) * query_->inverse_temperature;
  candidate.order = candidate.processed;
  if (query_->gumbel) {
    candidate.order += GumbelNoise(query_->key, static_cast<uint32_t>(candidate.id));
  }
  return candidate;
}

}  // namespace facet
