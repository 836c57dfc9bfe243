#include "shard_worker/model/forward.h"

#include <algorithm>

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
                                                         int rows_max) {
  std::unique_ptr<Forward> forward(new Forward(spec, plan, rank, weights, device));
  forward->PlanLayers();
  FACET_RETURN_IF_ERROR(forward->Allocate(rows_max));
  return forward;
}

Forward::Forward(const ModelSpec& spec, const ShardPlan& plan, int rank, const Weights& weights,
                 Device* device)
    : spec_(spec),
      plan_(plan),
      rank_(rank),
      weights_(weights),
      device_(device),
      vocabulary_rows_(plan.VocabularyRows(rank).size()) {}

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
}

absl::Status Forward::Allocate(int rows_max) {
  const int64_t rows = rows_max;
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
  const struct {
    Floats* buffer;
    int64_t size;
  } buffers[] = {
      {&residual_, rows * spec_.width},
      {&normed_, rows * spec_.width},
      {&update_, rows * spec_.width},
      {&qkv_, rows * qkv},
      {&attended_, rows * heads},
      {&gated_, rows * ffn},
      {&roots_, roots * rows * spec_.width},
      {&owned_embeddings_, rows * spec_.width},
      {&all_embeddings_, rows * spec_.width},
      {&logit_inputs_, int64_t{kLogitRowsMax} * spec_.width},
      {&logits_, kLogitRowsMax * vocabulary_rows_},
  };
  for (const auto& [buffer, size] : buffers) {
    FACET_ASSIGN_OR_RETURN(*buffer, device_->AllocateFloats(size));
  }
  for (std::vector<int32_t>* list : {&owned_, &owners_, &places_}) list->reserve(rows);
  gather_counts_.reserve(plan_.world());
  floor_counts_.reserve(plan_.world());
  all_floors_.resize(plan_.world() * kAgreedRowsMax);
  return absl::OkStatus();
}

absl::Status Forward::Run(const StepLayout& layout, std::span<const TokenId> tokens,
                          Communicator* communicator) {
  FACET_CHECK(static_cast<int>(tokens.size()) == layout.rows);
  communicator_ = communicator;
  device_->BeginStep(layout);
  FACET_RETURN_IF_ERROR(Embed(layout, tokens, communicator));
  const int layers = static_cast<int>(layers_.size());
  device_->RmsNorm(residual_, layout.rows, spec_.width, weights_.layers[0].attention_norm,
                   spec_.epsilon, normed_);
  for (int layer = 0; layer < layers; ++layer) {
    const LayerWeights& weights = weights_.layers[layer];
    FACET_RETURN_IF_ERROR(RunAttention(layer, layout.rows, communicator));
    progress_();
    AddResidual(layout.rows, weights.attention_post_norm, weights.ffn_norm);
    FACET_RETURN_IF_ERROR(RunFfn(layer, layout.rows, communicator));
    progress_();
    AddResidual(
        layout.rows, weights.ffn_post_norm,
        layer + 1 < layers ? weights_.layers[layer + 1].attention_norm : weights_.output_norm);
  }
  return absl::OkStatus();
}

// The owner of a vocabulary row sends it: one exchange per step, copied, never added.
absl::Status Forward::Embed(const StepLayout& layout, std::span<const TokenId> tokens,
                            Communicator* communicator) {
  PlanGather(layout.rows, tokens);
  if (plan_.world() == 1) {
    device_->EmbedRows(*weights_.embedding, owned_, spec_.embedding_scale, residual_);
    return absl::OkStatus();
  }
  device_->EmbedRows(*weights_.embedding, owned_, spec_.embedding_scale, owned_embeddings_);
  device_->Synchronize();
  const auto mine = static_cast<size_t>(gather_counts_[static_cast<size_t>(rank_)]);
  FACET_RETURN_IF_ERROR(communicator->AllGather(
      std::span<const float>(owned_embeddings_.data, mine), gather_counts_, all_embeddings_.data));
  device_->GatherRows(all_embeddings_, places_, spec_.width, residual_);
  return absl::OkStatus();
}

// Which rows of the embedding this rank owns, and where each step row lies among those of all
// ranks, side by side.
void Forward::PlanGather(int rows, std::span<const TokenId> tokens) {
  const auto first = static_cast<int32_t>(plan_.VocabularyRows(rank_).begin);
  owned_.clear();
  owners_.clear();
  places_.clear();
  gather_counts_.assign(static_cast<size_t>(plan_.world()), 0);
  for (int row = 0; row < rows; ++row) {
    const int owner = plan_.OwnerOf(tokens[row]);
    owners_.push_back(owner);
    places_.push_back(static_cast<int32_t>(gather_counts_[owner]++));
    if (owner == rank_) owned_.push_back(tokens[row] - first);
  }
  for (int row = 0; row < rows; ++row) {
    for (int rank = 0; rank < owners_[row]; ++rank) {
      places_[row] += static_cast<int32_t>(gather_counts_[rank]);
    }
  }
  for (int64_t& count : gather_counts_) count *= spec_.width;
}

absl::Status Forward::RunAttention(int layer, int rows, Communicator* communicator) {
  const Layer& l = layers_[layer];
  device_->Product(l.qkv, normed_, rows, qkv_);
  device_->RopeAndStore(l.attention, qkv_);
  device_->Attend(l.attention, qkv_, attended_);
  return ProductOfAll(*weights_.layers[layer].attention_output, l.attention_tree, attended_, rows,
                      communicator);
}

absl::Status Forward::RunFfn(int layer, int rows, Communicator* communicator) {
  const Layer& l = layers_[layer];
  const LayerWeights& weights = weights_.layers[layer];
  device_->GatedProduct(spec_.layers[layer].activation, *weights.gate, *weights.up, normed_, rows,
                        gated_);
  return ProductOfAll(*weights.down, l.ffn_tree, gated_, rows, communicator);
}

absl::Status Forward::ProductOfAll(const Matrix& matrix, const SumTree& tree, Floats x, int rows,
                                   Communicator* communicator) {
  if (plan_.world() == 1) {  // the only root is the sum
    device_->ProductRoots(matrix, x, rows, update_);
    return absl::OkStatus();
  }
  device_->ProductRoots(matrix, x, rows, roots_);
  device_->Synchronize();
  return communicator->AllReduceSum(tree, roots_.data, int64_t{rows} * spec_.width, update_.data);
}

void Forward::AddResidual(int rows, Floats post_norm, Floats next_norm) {
  ResidualNormArgs args;
  args.residual = residual_;
  args.update = update_;
  args.post_weight = post_norm;
  args.next_weight = next_norm;
  args.out = normed_;
  args.rows = rows;
  args.width = spec_.width;
  args.epsilon = spec_.epsilon;
  device_->ResidualNorm(args);
}

Floats Forward::Logits(std::span<const int32_t> rows) {
  FACET_CHECK(rows.size() <= kLogitRowsMax);
  const int count = static_cast<int>(rows.size());
  const Matrix* head = &weights_.head();
  device_->GatherRows(normed_, rows, spec_.width, logit_inputs_);
  device_->Product(std::span(&head, 1), logit_inputs_, count, logits_);
  if (spec_.logit_soft_cap > 0) {
    device_->SoftCap(logits_, count * vocabulary_rows_, spec_.logit_soft_cap);
  }
  return logits_;
}

void Forward::Search(std::span<const int32_t> rows, const VocabularySlices& slices,
                     std::span<const CandidateQuery> queries, std::span<CandidateReply> replies) {
  FACET_CHECK(rows.size() <= kLogitRowsMax && queries.size() == rows.size());
  device_->GatherRows(normed_, rows, spec_.width, logit_inputs_);
  HeadSearch search;
  search.head = &weights_.head();
  search.x = logit_inputs_;
  search.soft_cap = spec_.logit_soft_cap;
  search.slices = &slices;
  search.queries = queries;
  search.scratch = logits_;
  // Floors are in host memory, where the communicator of another device does not look; such a
  // device reads the whole head anyway.
  if (plan_.world() > 1 && rows.size() <= kAgreedRowsMax && device_->host_memory()) {
    search.agree = [this](std::span<float> floors) { AgreeOnFloors(floors); };
  }
  device_->SearchHead(search, replies);
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
