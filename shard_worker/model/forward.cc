#include "shard_worker/model/forward.h"

#include <algorithm>
#include <iterator>
#include <numeric>

#include "base/check.h"
#include "base/status.h"

namespace facet {
namespace {

// Devices leave parts of the output layer unread for a few rows only: with more of them, to agree
// on floors would be in vain.
constexpr size_t kAgreedRowsMax = 4;

}  // namespace

absl::StatusOr<std::unique_ptr<Forward>> Forward::Create(const ModelSpec& spec,
                                                         const ShardPlan& plan, int rank,
                                                         const Weights& weights, Device* device,
                                                         int rows_max, int places) {
  std::unique_ptr<Forward> forward(new Forward(spec, plan, rank, weights, device));
  forward->PlanLayers();
  FACET_RETURN_IF_ERROR(forward->Allocate(rows_max, places));
  return forward;
}

Forward::Forward(const ModelSpec& spec, const ShardPlan& plan, int rank, const Weights& weights,
                 Device* device)
    : spec_(spec),
      plan_(plan),
      rank_(rank),
      weights_(weights),
      device_(device),
      vocabulary_rows_(plan.VocabularyRows(rank).size()) {
  for (int owner = 0; owner < plan.world(); ++owner) {
    token_ends_.push_back(static_cast<int32_t>(plan.VocabularyRows(owner).end));
  }
}

void Forward::PlanLayers() {
  std::vector<int> ropes;
  for (const RopeSpec& rope : spec_.ropes) ropes.push_back(device_->AddRope(rope));
  for (int i = 0; i < static_cast<int>(spec_.layers.size()); ++i) {
    const LayerSpec& spec = spec_.layers[i];
    const LayerWeights& weights = weights_.layers[i];
    const LayerShard shard = plan_.Layer(spec_, i, rank_);
    AttentionSpec attention;
    attention.pool = spec.window > 0 ? kWindowPool : kFullPool;
    KvPoolSpec& pool = pools_[attention.pool];
    attention.pool_layer = pool.layers++;
    attention.heads = static_cast<int>(shard.heads.size());
    attention.kv_heads = static_cast<int>(shard.kv_heads.size());
    attention.head_dim = spec.head_dim;
    for (int64_t head = shard.heads.begin; head < shard.heads.end; ++head) {
      const int64_t kv_head = head / (spec.heads / spec.kv_heads);
      attention.kv_of_head.push_back(static_cast<int>(kv_head - shard.kv_heads.begin));
    }
    attention.window = spec.window;
    attention.scale = spec.attention_scale;
    attention.soft_cap = spec.soft_cap;
    attention.rope = ropes[spec.rope];
    attention.q_norm = weights.query_norm;
    attention.k_norm = weights.key_norm;
    attention.norm_epsilon = spec_.epsilon;
    pool.kv_heads = std::max(pool.kv_heads, attention.kv_heads);
    pool.head_dim = std::max(pool.head_dim, attention.head_dim);
    layers_.push_back(Layer{std::move(attention),
                            plan_.AttentionTree(i),
                            plan_.FfnTree(i),
                            {weights.query.get(), weights.key.get(), weights.value.get()},
                            static_cast<int>(shard.ffn.size())});
  }
  last_ = {layers_.back().attention, {layers_.back().qkv[1], layers_.back().qkv[2]}};
  last_.attention.heads = 0;
  last_.attention.kv_of_head.clear();
}

absl::Status Forward::Allocate(int rows_max, int places) {
  if (places > 0) FACET_RETURN_IF_ERROR(device_->AllocateTokens(places));
  int64_t replayed_rows = 0;
  for (int rows = 1; rows <= rows_max; ++rows) {
    replayed_rows = std::max<int64_t>(replayed_rows, device_->ReplayedRows(rows));
  }
  const int64_t rows = std::max<int64_t>(rows_max, replayed_rows);
  // In a step that is replayed every rank sends a row for each token, in others of a token that
  // only the devices know.
  const int64_t world = plan_.world();
  const int64_t brought_rows =
      std::max(replayed_rows * world, rows + std::min<int64_t>(rows, places) * (world - 1));
  const int64_t keys = int64_t{kLogitRowsMax} * kBestKeyFloats;
  int64_t qkv = 0, heads = 0, ffn = 0, roots = 0;
  for (const Layer& layer : layers_) {
    const AttentionSpec& attention = layer.attention;
    qkv = std::max<int64_t>(qkv,
                            int64_t{attention.heads + 2 * attention.kv_heads} * attention.head_dim);
    heads = std::max<int64_t>(heads, int64_t{attention.heads} * attention.head_dim);
    ffn = std::max<int64_t>(ffn, layer.ffn);
    if (plan_.world() == 1) continue;  // sums need no roots
    roots = std::max<int64_t>(
        {roots, layer.attention_tree.root_count(rank_), layer.ffn_tree.root_count(rank_)});
  }
  const Readers readers = FindReaders();
  const struct {
    Floats* buffer;
    int64_t size;
    const std::vector<const Matrix*>& readers;
  } inputs[] = {
      {&normed_, rows * spec_.width, readers.normed},
      {&attended_, rows * heads, readers.attended},
      {&gated_, rows * ffn, readers.gated},
  };
  for (const auto& [buffer, size, matrices] : inputs) {
    FACET_ASSIGN_OR_RETURN(*buffer, device_->AllocateInputs(size, matrices));
  }
  const struct {
    Floats* buffer;
    int64_t size;
  } buffers[] = {
      {&residual_, rows * spec_.width},
      {&update_, rows * spec_.width},
      {&final_, rows * spec_.width},
      {&qkv_, rows * qkv},
      {&roots_, roots * rows * spec_.width},
      {&owned_embeddings_, rows * spec_.width},
      {&all_embeddings_, brought_rows * spec_.width},
      {&logit_inputs_, int64_t{kLogitRowsMax} * spec_.width},
      {&logits_, kLogitRowsMax * vocabulary_rows_},
      {&best_, keys},
      {&all_best_, keys * plan_.world()},
  };
  for (const auto& [buffer, size] : buffers) {
    FACET_ASSIGN_OR_RETURN(*buffer, device_->AllocateFloats(size));
  }
  sent_.reserve(rows);
  brought_.reserve(rows);
  known_next_.reserve(plan_.world());
  shared_begins_.reserve(plan_.world());
  wanted_.reserve(rows);
  wanted_places_.reserve(kLogitRowsMax);
  wanted_runs_.reserve(kLogitRowsMax);
  gather_counts_.reserve(plan_.world());
  floor_counts_.reserve(plan_.world());
  all_floors_.resize(plan_.world() * kAgreedRowsMax);
  return absl::OkStatus();
}

Forward::Readers Forward::FindReaders() const {
  Readers readers;
  for (const LayerWeights& layer : weights_.layers) {
    for (const auto* matrix : {&layer.query, &layer.key, &layer.value, &layer.gate, &layer.up}) {
      readers.normed.push_back(matrix->get());
    }
    readers.attended.push_back(layer.attention_output.get());
    readers.gated.push_back(layer.down.get());
  }
  return readers;
}

Floats Forward::AttentionInputs(int layer) const {
  return narrow_ && layer + 1 == static_cast<int>(layers_.size()) ? final_ : normed_;
}

absl::Status Forward::Run(const StepLayout& layout, std::span<const TokenId> tokens,
                          std::span<const int32_t> wanted, Communicator* communicator) {
  FACET_CHECK(static_cast<int>(tokens.size()) == layout.rows);
  communicator_ = communicator;
  wanted_.assign(wanted.begin(), wanted.end());
  // A device with memory of its own sees the whole of a step at once, and in one shape.
  narrow_ = device_->host_memory() && wanted.size() <= kLogitRowsMax &&
            static_cast<int>(wanted.size()) < layout.rows;
  device_->BeginStep(layout);
  FACET_RETURN_IF_ERROR(Embed(tokens));
  device_->RmsNorm(residual_, layout.rows, spec_.width, weights_.layers[0].attention_norm,
                   spec_.epsilon, AttentionInputs(0));
  const int last = static_cast<int>(layers_.size()) - 1;
  for (int layer = 0; layer < last; ++layer) {
    FACET_RETURN_IF_ERROR(RunLayer(layer, layout.rows));
  }
  const int rows = narrow_ ? Narrow(layout) : layout.rows;
  return rows == 0 ? absl::OkStatus() : RunLayer(last, rows);
}

absl::Status Forward::RunLayer(int layer, int rows) {
  const LayerWeights& weights = weights_.layers[layer];
  FACET_RETURN_IF_ERROR(RunAttention(layer, rows));
  progress_();
  AddResidual(rows, weights.attention_post_norm, weights.ffn_norm, normed_);
  FACET_RETURN_IF_ERROR(RunFfn(layer, rows));
  progress_();
  const int next = layer + 1;
  if (next == static_cast<int>(layers_.size())) {
    AddResidual(rows, weights.ffn_post_norm, weights_.output_norm, final_);
  } else {
    AddResidual(rows, weights.ffn_post_norm, weights_.layers[next].attention_norm,
                AttentionInputs(next));
  }
  return absl::OkStatus();
}

int Forward::Narrow(const StepLayout& layout) {
  device_->Product(last_.matrices, final_, layout.rows, qkv_);
  device_->RopeAndStore(last_.attention, qkv_);
  if (wanted_.empty()) return 0;
  KeepWanted(residual_);
  KeepWanted(final_);
  PlanNarrowStep(layout);
  device_->NarrowStep(wanted_layout_);
  return wanted_layout_.rows;
}

void Forward::KeepWanted(Floats rows) {
  wanted_places_.resize(wanted_.size());
  std::iota(wanted_places_.begin(), wanted_places_.end(), 0);
  device_->GatherRows(rows, wanted_, spec_.width, logit_inputs_);
  device_->GatherRows(logit_inputs_, wanted_places_, spec_.width, rows);
}

// One run for every wanted row, or for several that follow on each other.
void Forward::PlanNarrowStep(const StepLayout& layout) {
  wanted_runs_.clear();
  size_t next = 0;
  for (const SequenceRun& run : layout.runs) {
    int previous = -1;
    for (; next < wanted_.size() && wanted_[next] < run.first_row + run.rows; ++next) {
      const int row = wanted_[next];
      if (previous >= 0 && row == previous + 1) {
        ++wanted_runs_.back().rows;
      } else {
        wanted_runs_.push_back(
            {static_cast<int>(next), 1, run.first_position + row - run.first_row, run.blocks});
      }
      previous = row;
    }
  }
  FACET_CHECK(next == wanted_.size(), "the wanted rows do not ascend within the step");
  wanted_layout_ = {static_cast<int>(wanted_.size()), wanted_runs_};
}

std::span<const int32_t> Forward::PlacesOf(std::span<const int32_t> rows) {
  if (!narrow_) return rows;
  wanted_places_.clear();
  for (const int32_t row : rows) {
    const auto place = std::lower_bound(wanted_.begin(), wanted_.end(), row);
    FACET_CHECK(place != wanted_.end() && *place == row, "row {} was not wanted", row);
    wanted_places_.push_back(static_cast<int32_t>(place - wanted_.begin()));
  }
  return wanted_places_;
}

int Forward::ExchangedRows(int rows) const { return std::max(rows, device_->ReplayedRows(rows)); }

// The owner of a vocabulary row sends it: one exchange per step, copied, never added. Of a token
// that only the devices know every rank sends a row, its own or zeros, and the owner's is taken; in
// a step that may be replayed, of every token.
absl::Status Forward::Embed(std::span<const TokenId> tokens) {
  if (plan_.world() == 1) {
    device_->EmbedRows(*weights_.embedding, 0, tokens, spec_.embedding_scale, residual_);
    return absl::OkStatus();
  }
  const int bucket = device_->ReplayedRows(static_cast<int>(tokens.size()));
  if (bucket > 0) {
    PlanEvenGather(tokens, bucket);
  } else {
    PlanGather(tokens);
  }
  const auto first = static_cast<int32_t>(plan_.VocabularyRows(rank_).begin);
  device_->EmbedRows(*weights_.embedding, first, sent_, spec_.embedding_scale, owned_embeddings_);
  FACET_RETURN_IF_ERROR(GatherAll(owned_embeddings_, all_embeddings_));
  device_->GatherBrought({all_embeddings_, brought_, token_ends_, shared_begins_}, spec_.width,
                         residual_);
  return absl::OkStatus();
}

// Every rank sends the rows that it is known to own, then one for each token that is not known.
void Forward::PlanGather(std::span<const TokenId> tokens) {
  gather_counts_.assign(static_cast<size_t>(plan_.world()), 0);  // at first of known rows
  for (const TokenId token : tokens) {
    if (!IsKept(token)) ++gather_counts_[static_cast<size_t>(plan_.OwnerOf(token))];
  }
  const auto kept = std::ranges::count_if(tokens, IsKept);
  known_next_.clear();
  shared_begins_.clear();
  int64_t begin = 0;
  for (int64_t& count : gather_counts_) {
    known_next_.push_back(static_cast<int32_t>(begin));
    shared_begins_.push_back(static_cast<int32_t>(begin + count));
    begin += count + kept;
    count = (count + kept) * spec_.width;
  }
  const auto first = static_cast<int32_t>(plan_.VocabularyRows(rank_).begin);
  sent_.clear();
  brought_.clear();
  int32_t kept_next = 0;
  for (const TokenId token : tokens) {
    if (IsKept(token)) {
      brought_.push_back({kept_next++, PlaceOfKept(token)});
      continue;
    }
    const int owner = plan_.OwnerOf(token);
    brought_.push_back({known_next_[static_cast<size_t>(owner)]++, -1});
    if (owner == rank_) sent_.push_back(token - first);
  }
  std::ranges::copy_if(tokens, std::back_inserter(sent_), IsKept);
}

// `rows` rows of every rank, whoever owns which token: of one that it does not own a rank sends its
// first row, which nobody reads.
void Forward::PlanEvenGather(std::span<const TokenId> tokens, int rows) {
  gather_counts_.assign(static_cast<size_t>(plan_.world()), int64_t{rows} * spec_.width);
  shared_begins_.clear();
  for (int rank = 0; rank < plan_.world(); ++rank) shared_begins_.push_back(rank * rows);
  const auto first = static_cast<int32_t>(plan_.VocabularyRows(rank_).begin);
  sent_.clear();
  brought_.clear();
  for (const TokenId token : tokens) {
    const auto row = static_cast<int32_t>(brought_.size());
    if (IsKept(token)) {
      sent_.push_back(token);
      brought_.push_back({row, PlaceOfKept(token)});
      continue;
    }
    const int owner = plan_.OwnerOf(token);
    sent_.push_back(owner == rank_ ? token - first : 0);
    brought_.push_back({shared_begins_[static_cast<size_t>(owner)] + row, -1});
  }
}

absl::Status Forward::GatherAll(Floats mine, Floats out) {
  const auto count = static_cast<size_t>(gather_counts_[static_cast<size_t>(rank_)]);
  return communicator_->AllGather(std::span<const float>(mine.data, count), gather_counts_,
                                  out.data);
}

absl::Status Forward::RunAttention(int layer, int rows) {
  const Layer& l = layers_[layer];
  device_->Product(l.qkv, AttentionInputs(layer), rows, qkv_);
  device_->RopeAndStore(l.attention, qkv_);
  device_->Attend(l.attention, qkv_, attended_);
  return ProductOfAll(*weights_.layers[layer].attention_output, l.attention_tree, attended_, rows);
}

absl::Status Forward::RunFfn(int layer, int rows) {
  const Layer& l = layers_[layer];
  const LayerWeights& weights = weights_.layers[layer];
  device_->GatedProduct(spec_.layers[layer].activation, *weights.gate, *weights.up, normed_, rows,
                        gated_);
  return ProductOfAll(*weights.down, l.ffn_tree, gated_, rows);
}

absl::Status Forward::ProductOfAll(const Matrix& matrix, const SumTree& tree, Floats x, int rows) {
  if (plan_.world() == 1) {  // the only root is the sum
    device_->ProductRoots(matrix, x, rows, update_);
    return absl::OkStatus();
  }
  const int exchanged = ExchangedRows(rows);
  device_->ProductRoots(matrix, x, exchanged, roots_);
  return communicator_->AllReduceSum(tree, roots_.data, int64_t{exchanged} * spec_.width,
                                     update_.data);
}

void Forward::AddResidual(int rows, Floats post_norm, Floats next_norm, Floats out) {
  ResidualNormArgs args;
  args.residual = residual_;
  args.update = update_;
  args.post_weight = post_norm;
  args.next_weight = next_norm;
  args.out = out;
  args.rows = rows;
  args.width = spec_.width;
  args.epsilon = spec_.epsilon;
  device_->ResidualNorm(args);
}

Floats Forward::Logits(std::span<const int32_t> rows) {
  FACET_CHECK(rows.size() <= kLogitRowsMax);
  const int count = static_cast<int>(rows.size());
  const Matrix* head = &weights_.head();
  device_->GatherRows(final_, PlacesOf(rows), spec_.width, logit_inputs_);
  device_->Product(std::span(&head, 1), logit_inputs_, count, logits_);
  if (spec_.logit_soft_cap > 0) {
    device_->SoftCap(logits_, count * vocabulary_rows_, spec_.logit_soft_cap);
  }
  return logits_;
}

HeadSearch Forward::MakeSearch(std::span<const int32_t> rows, const VocabularySlices& slices,
                               std::span<const CandidateQuery> queries) {
  FACET_CHECK(rows.size() <= kLogitRowsMax && queries.size() == rows.size());
  device_->GatherRows(final_, PlacesOf(rows), spec_.width, logit_inputs_);
  HeadSearch search;
  search.head = &weights_.head();
  search.x = logit_inputs_;
  search.soft_cap = spec_.logit_soft_cap;
  search.slices = &slices;
  search.queries = queries;
  search.scratch = logits_;
  return search;
}

void Forward::Search(std::span<const int32_t> rows, const VocabularySlices& slices,
                     std::span<const CandidateQuery> queries, std::span<CandidateReply> replies) {
  HeadSearch search = MakeSearch(rows, slices, queries);
  // A device with memory of its own reads all of the head, whatever the floors.
  if (plan_.world() > 1 && device_->host_memory() && rows.size() <= kAgreedRowsMax) {
    search.agree = [this](std::span<float> floors) { AgreeOnFloors(floors); };
  }
  device_->SearchHead(search, replies);
}

absl::Status Forward::Ask(std::span<const int32_t> rows, const VocabularySlices& slices,
                          std::span<const CandidateQuery> queries, std::span<const int32_t> keep) {
  FACET_CHECK(keep.size() == rows.size());
  device_->AskHead(MakeSearch(rows, slices, queries), best_);
  const int64_t keys = int64_t{ExchangedRows(static_cast<int>(rows.size()))} * kBestKeyFloats;
  Floats all = best_;
  if (plan_.world() > 1) {
    gather_counts_.assign(static_cast<size_t>(plan_.world()), keys);
    FACET_RETURN_IF_ERROR(GatherAll(best_, all_best_));
    all = all_best_;
  }
  device_->KeepBest({all.data, keys * plan_.world()}, plan_.world(), keep);
  return absl::OkStatus();
}

void Forward::AgreeOnFloors(std::span<float> floors) {
  const auto world = static_cast<size_t>(plan_.world());
  floor_counts_.assign(world, static_cast<int64_t>(floors.size()));
  if (!communicator_->AllGather(floors, floor_counts_, all_floors_.data()).ok()) return;
  for (size_t i = 0; i < world * floors.size(); ++i) {
    float& floor = floors[i % floors.size()];
    floor = std::max(floor, all_floors_[i]);
  }
}

}  // namespace facet
