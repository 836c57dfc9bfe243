#include "kernels/cuda/cuda_attention.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/status.h"
#include "kernels/host/rotation.h"

namespace facet::cuda {
namespace {

int64_t ElementBytes(KvType type) { return type == KvType::kF16 ? 2 : 4; }

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

void OrderHeads(const AttentionSpec& spec, AttentionLayer* layer) {
  int16_t next = 0;
  for (int kv_head = 0; kv_head < spec.kv_heads; ++kv_head) {
    layer->first_head[kv_head] = next;
    for (int head = 0; head < spec.heads; ++head) {
      if (spec.kv_of_head[static_cast<size_t>(head)] != kv_head) continue;
      layer->head_order[next++] = static_cast<uint8_t>(head);
    }
  }
  layer->first_head[spec.kv_heads] = next;
}

// Floats for a row's total, or for what one split adds to it.
int64_t PlaceOf(const AttentionSpec& spec) { return int64_t{spec.heads} * (spec.head_dim + 2); }

// Calls launch() for `step` splits after the other of a pass's rows.
template <typename Launch>
void ForPasses(int splits, int step, AttentionPass* pass, const Launch& launch) {
  for (pass->first_split = 0; pass->first_split < splits; pass->first_split += step) {
    pass->splits = std::min(step, splits - pass->first_split);
    pass->last = pass->first_split + pass->splits == splits;
    launch();
  }
}

}  // namespace

absl::Status CudaAttention::AllocateKv(const std::array<KvPoolSpec, kKvPools>& pools) {
  FACET_RETURN_IF_ERROR(Wait(context_.stream));
  for (size_t i = 0; i < pools.size(); ++i) {
    const KvPoolSpec& spec = pools[i];
    specs_[i] = spec;
    if (pools_[i] != nullptr) context_.memory->Release(std::exchange(pools_[i], nullptr));
    if (spec.layers == 0 || spec.blocks == 0) continue;
    if (spec.layers < 0 || spec.blocks < 0 || spec.block_tokens < 1 || spec.kv_heads < 1 ||
        spec.head_dim < 1) {
      return InvalidArgument("a KV pool of {} layers, {} blocks of {} tokens, {} heads of {}",
                             spec.layers, spec.blocks, spec.block_tokens, spec.kv_heads,
                             spec.head_dim);
    }
    const int64_t bytes = int64_t{2} * spec.layers * spec.blocks * spec.block_tokens *
                          spec.kv_heads * spec.head_dim * ElementBytes(spec.type);
    FACET_ASSIGN_OR_RETURN(void* const memory, context_.memory->Allocate("keys and values", bytes));
    pools_[i] = static_cast<uint8_t*>(memory);
  }
  return AllocateTables();
}

int CudaAttention::AddRope(RopeSpec spec) {
  ropes_.push_back(std::move(spec));
  CheckOk(Wait(context_.stream), "set-up");
  CheckOk(AllocateTables(), "set-up");
  return static_cast<int>(ropes_.size()) - 1;
}

int64_t CudaAttention::TableBytes(int64_t rows, int64_t table_entries) const {
  // Positions and tiles of rows; by pool, where a row's block table begins, and all tables, each
  // pool's padded.
  int64_t bytes = (3 + kKvPools) * UploadRing::Padded(rows * 4);
  bytes += UploadRing::Padded(table_entries * 4) + UploadRing::Padded(1) * kKvPools;
  for (int i = 0; i < static_cast<int>(ropes_.size()); ++i) {
    bytes += 2 * UploadRing::Padded(rows * PairsOf(i) * 4);
  }
  return bytes;
}

absl::Status CudaAttention::AllocateTables() {
  int64_t entries = 0;
  for (const KvPoolSpec& spec : specs_) {
    if (spec.blocks == 0 || spec.block_tokens < 1) continue;
    entries += bounds_.sequences * (CeilDiv(bounds_.context, spec.block_tokens) + 1);
  }
  const int64_t bytes = 2 * TableBytes(bounds_.rows, entries);  // two steps may be on their way
  if (bytes <= tables_.size()) return absl::OkStatus();
  return tables_.Create("step tables", bytes, context_.memory, context_.stream);
}

void CudaAttention::BeginStep(const StepLayout& layout) {
  int row = 0;
  int64_t entries = 0;
  for (const SequenceRun& run : layout.runs) {
    FACET_CHECK(run.first_row == row && run.rows > 0 && run.first_position >= 0,
                "a run of {} rows at row {}, position {}", run.rows, run.first_row,
                run.first_position);
    FACET_CHECK(run.first_position + run.rows <= std::numeric_limits<int32_t>::max());
    row += run.rows;
    for (const auto& blocks : run.blocks) entries += static_cast<int64_t>(blocks.size());
  }
  FACET_CHECK(row == layout.rows, "runs of {} rows in a step of {}", row, layout.rows);
  layout_ = &layout;
  tables_.Reserve(TableBytes(layout.rows, entries));
  PutPositions(layout);
  PutTiles(layout);
  for (int pool = 0; pool < kKvPools; ++pool) PutBlocks(layout, pool);
  rotations_.resize(ropes_.size());
  for (int i = 0; i < static_cast<int>(ropes_.size()); ++i) PutRotations(layout, i);
  tables_.Flush();
}

void CudaAttention::PutPositions(const StepLayout& layout) {
  const int32_t* device = nullptr;
  const std::span<int32_t> positions = tables_.Make(layout.rows, &device);
  for (const SequenceRun& run : layout.runs) {
    for (int i = 0; i < run.rows; ++i) {
      positions[static_cast<size_t>(run.first_row + i)] =
          static_cast<int32_t>(run.first_position + i);
    }
  }
  for (RowPlaces& places : places_) places.positions = device;
}

void CudaAttention::PutTiles(const StepLayout& layout) {
  tiles_ = RowTiles();
  for (const SequenceRun& run : layout.runs) {
    tiles_.count += static_cast<int>(CeilDiv(run.rows, kTileTokens));
    tiles_.rows_max = std::max(tiles_.rows_max, std::min(run.rows, kTileTokens));
  }
  const std::span<int32_t> first_rows = tables_.Make(tiles_.count, &tiles_.first_rows);
  const std::span<int32_t> rows = tables_.Make(tiles_.count, &tiles_.rows);
  size_t tile = 0;
  for (const SequenceRun& run : layout.runs) {
    for (int done = 0; done < run.rows; done += kTileTokens, ++tile) {
      first_rows[tile] = run.first_row + done;
      rows[tile] = std::min(run.rows - done, kTileTokens);
    }
  }
}

void CudaAttention::PutBlocks(const StepLayout& layout, int pool) {
  const auto index = static_cast<size_t>(pool);
  RowPlaces& places = places_[index];
  int64_t entries = 0;
  for (const SequenceRun& run : layout.runs) {
    entries += static_cast<int64_t>(run.blocks[index].size());
  }
  const std::span<int32_t> begins = tables_.Make(layout.rows, &places.table_begins);
  const std::span<int32_t> blocks = tables_.Make(entries, &places.blocks);
  size_t next = 0;
  for (const SequenceRun& run : layout.runs) {
    std::fill_n(begins.begin() + run.first_row, run.rows, static_cast<int32_t>(next));
    std::copy(run.blocks[index].begin(), run.blocks[index].end(),
              blocks.begin() + static_cast<int64_t>(next));
    next += run.blocks[index].size();
  }
}

// On the host, where a double's cosine is that of every other device.
void CudaAttention::PutRotations(const StepLayout& layout, int rope) {
  const std::vector<float>& frequencies = ropes_[static_cast<size_t>(rope)].inverse_frequency;
  Rotations& rotations = rotations_[static_cast<size_t>(rope)];
  const int64_t size = layout.rows * PairsOf(rope);
  const std::span<float> cosines = tables_.Make(size, &rotations.cosines);
  const std::span<float> sines = tables_.Make(size, &rotations.sines);
  size_t at = 0;
  for (const SequenceRun& run : layout.runs) {
    for (int i = 0; i < run.rows; ++i) {
      for (const float frequency : frequencies) {
        const Rotation rotation = RotationAt(run.first_position + i, frequency);
        cosines[at] = rotation.cosine;
        sines[at++] = rotation.sine;
      }
    }
  }
}

void CudaAttention::CheckSpec(const AttentionSpec& spec, Floats qkv) const {
  FACET_CHECK(layout_ != nullptr, "no step has begun");
  FACET_CHECK(spec.pool >= 0 && spec.pool < kKvPools, "pool {}", spec.pool);
  const KvPoolSpec& pool = specs_[static_cast<size_t>(spec.pool)];
  FACET_CHECK(pool.kv_heads == spec.kv_heads && pool.head_dim == spec.head_dim,
              "{} KV heads of {} in a pool of {} of {}", spec.kv_heads, spec.head_dim,
              pool.kv_heads, pool.head_dim);
  FACET_CHECK(spec.pool_layer >= 0 && spec.pool_layer < pool.layers, "layer {}", spec.pool_layer);
  FACET_CHECK(static_cast<int>(spec.kv_of_head.size()) == spec.heads && spec.heads <= kHeadsMax &&
                  spec.kv_heads <= kHeadsMax,
              "{} heads mapped of {}, to {}", spec.kv_of_head.size(), spec.heads, spec.kv_heads);
  for (const int kv_head : spec.kv_of_head) {
    FACET_CHECK(kv_head >= 0 && kv_head < spec.kv_heads, "KV head {}", kv_head);
  }
  FACET_CHECK(spec.rope < static_cast<int>(ropes_.size()), "rope {}", spec.rope);
  FACET_CHECK(spec.rope < 0 || 2 * PairsOf(spec.rope) <= spec.head_dim);
  const int64_t width = int64_t{spec.heads + 2 * spec.kv_heads} * spec.head_dim;
  FACET_CHECK(layout_->rows * width <= qkv.size, "{} rows of {} in {} floats", layout_->rows, width,
              qkv.size);
}

AttentionLayer CudaAttention::LayerOf(const AttentionSpec& spec) const {
  const auto pool = static_cast<size_t>(spec.pool);
  AttentionLayer layer;
  layer.pool.data = pools_[pool];
  layer.pool.blocks = specs_[pool].blocks;
  layer.pool.block_tokens = specs_[pool].block_tokens;
  layer.pool.half = specs_[pool].type == KvType::kF16;
  layer.layer = spec.pool_layer;
  layer.heads = spec.heads;
  layer.kv_heads = spec.kv_heads;
  layer.head_dim = spec.head_dim;
  for (size_t i = 0; i < spec.kv_of_head.size(); ++i) {
    layer.kv_of_head[i] = static_cast<uint8_t>(spec.kv_of_head[i]);
  }
  OrderHeads(spec, &layer);
  layer.window = spec.window;
  layer.scale = spec.scale;
  layer.soft_cap = spec.soft_cap;
  if (spec.rope >= 0) {
    const Rotations& rotations = rotations_[static_cast<size_t>(spec.rope)];
    layer.pairs = static_cast<int>(PairsOf(spec.rope));
    layer.cosines = rotations.cosines;
    layer.sines = rotations.sines;
  }
  layer.q_norm = spec.q_norm.data;
  layer.k_norm = spec.k_norm.data;
  layer.norm_epsilon = spec.norm_epsilon;
  return layer;
}

void CudaAttention::RopeAndStore(const AttentionSpec& spec, Floats qkv) {
  CheckSpec(spec, qkv);
  const RowPlaces& places = places_[static_cast<size_t>(spec.pool)];
  CheckLaunch(cuda::RopeAndStore(context_.stream, LayerOf(spec), places, layout_->rows, qkv.data),
              "rotation and store");
}

int CudaAttention::SplitsOf(const AttentionSpec& spec) const {
  int64_t most = 0;
  for (const SequenceRun& run : layout_->runs) {
    const int64_t last = run.first_position + run.rows - 1;
    int64_t splits = last / kSplitTokens + 1;
    if (spec.window > 0) splits = std::min(splits, CeilDiv(spec.window - 1, kSplitTokens) + 1);
    most = std::max(most, splits);
  }
  return static_cast<int>(most);
}

bool CudaAttention::OnTensorCores(const AttentionSpec& spec) const {
  return specs_[static_cast<size_t>(spec.pool)].type == KvType::kF16 &&
         spec.head_dim % kTensorHeadUnit == 0 && spec.head_dim <= kTensorHeadMax;
}

void CudaAttention::Attend(const AttentionSpec& spec, Floats qkv, Floats out) {
  CheckSpec(spec, qkv);
  FACET_CHECK(int64_t{layout_->rows} * spec.heads * spec.head_dim <= out.size);
  if (layout_->rows == 0) return;
  AttentionPass pass;
  pass.qkv = qkv.data;
  pass.out = out.data;
  pass.totals = context_.workspace_floats();
  if (OnTensorCores(spec)) {
    AttendOnTensorCores(spec, pass);
  } else {
    AttendInReferenceOrder(spec, pass);
  }
}

int64_t CudaAttention::RoomFor(const AttentionSpec& spec) const {
  const int64_t room = context_.workspace_size() / PlaceOf(spec);
  FACET_CHECK(room >= 2, "{} heads of {} exceed the work space", spec.heads, spec.head_dim);
  return room;
}

void CudaAttention::AttendInReferenceOrder(const AttentionSpec& spec, AttentionPass pass) {
  const RowPlaces& places = places_[static_cast<size_t>(spec.pool)];
  const AttentionLayer layer = LayerOf(spec);
  const int64_t room = RoomFor(spec);
  const int splits = SplitsOf(spec);
  const int rows_step = static_cast<int>(std::min<int64_t>(layout_->rows, room / 2));
  for (pass.first_row = 0; pass.first_row < layout_->rows; pass.first_row += rows_step) {
    pass.rows = std::min(rows_step, layout_->rows - pass.first_row);
    pass.partials = pass.totals + pass.rows * PlaceOf(spec);
    const int step =
        static_cast<int>(std::min<int64_t>(bounds_.splits_per_pass, room / pass.rows - 1));
    ForPasses(splits, step, &pass, [&] {
      CheckLaunch(cuda::Attend(context_.stream, layer, places, pass), "attention");
    });
  }
}

void CudaAttention::AttendOnTensorCores(const AttentionSpec& spec, AttentionPass pass) {
  const RowPlaces& places = places_[static_cast<size_t>(spec.pool)];
  const AttentionLayer layer = LayerOf(spec);
  const int splits = SplitsOf(spec);
  pass.rows = layout_->rows;
  pass.partials = pass.totals + pass.rows * PlaceOf(spec);
  const int step =
      static_cast<int>(std::min<int64_t>(bounds_.splits_per_pass, RoomFor(spec) / pass.rows - 1));
  pass.direct = splits == 1 || step < 1 || TileBlocks(layer, tiles_) >= bounds_.full_blocks;
  ForPasses(splits, pass.direct ? splits : step, &pass, [&] {
    CheckLaunch(cuda::AttendTiles(context_.stream, layer, places, tiles_, pass), "attention");
  });
}

}  // namespace facet::cuda
