#include "kernels/cuda/cuda_attention.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "base/status.h"
#include "kernels/cuda/launch_queue.h"
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
    spare_blocks_[i][0] = spec.blocks;
    if (pools_[i] != nullptr) context_.memory->Release(std::exchange(pools_[i], nullptr));
    if (spec.layers == 0 || spec.blocks == 0) continue;
    if (spec.layers < 0 || spec.blocks < 0 || spec.block_tokens < 1 || spec.kv_heads < 1 ||
        spec.head_dim < 1) {
      return InvalidArgument("a KV pool of {} layers, {} blocks of {} tokens, {} heads of {}",
                             spec.layers, spec.blocks, spec.block_tokens, spec.kv_heads,
                             spec.head_dim);
    }
    const int64_t bytes = int64_t{2} * spec.layers * (spec.blocks + int64_t{1}) *
                          spec.block_tokens * spec.kv_heads * spec.head_dim *
                          ElementBytes(spec.type);
    FACET_ASSIGN_OR_RETURN(void* const memory, context_.memory->Allocate("keys and values", bytes));
    pools_[i] = static_cast<uint8_t*>(memory);
  }
  return AllocateTables();
}

int CudaAttention::AddRope(RopeSpec spec) {
  ropes_.push_back(std::move(spec));
  // Where the tables do not fit any more, AllocateKv() or else the first step says so.
  CheckOk(Wait(context_.stream), "set-up");
  AllocateTables().IgnoreError();
  return static_cast<int>(ropes_.size()) - 1;
}

int64_t CudaAttention::TableBytes(int64_t rows, int64_t table_entries) const {
  // Positions and tiles of rows; by pool, where a row's block table begins; rotations; all tables
  // of all pools.
  int64_t bytes = (3 + kKvPools) * UploadArea::Padded(rows * 4);
  for (int i = 0; i < static_cast<int>(ropes_.size()); ++i) {
    bytes += 2 * UploadArea::Padded(rows * PairsOf(i) * 4);
  }
  return bytes + UploadArea::Padded(table_entries * 4);
}

absl::Status CudaAttention::AllocateTables() {
  int64_t entries = kKvPools * kReplayedRowsMax;  // of the rows that are added
  for (const KvPoolSpec& spec : specs_) {
    if (spec.blocks == 0 || spec.block_tokens < 1) continue;
    entries += bounds_.sequences * (CeilDiv(bounds_.context, spec.block_tokens) + 1);
  }
  const int64_t bytes = TableBytes(std::max(bounds_.rows, kReplayedRowsMax), entries);
  if (bytes <= tables_.size()) return absl::OkStatus();
  places_ = {};
  return tables_.Create("step tables", bytes, context_.memory, context_.wait);
}

void CudaAttention::CheckLayout(const StepLayout& layout) const {
  int row = 0;
  for (const SequenceRun& run : layout.runs) {
    FACET_CHECK(run.first_row == row && run.rows > 0 && run.first_position >= 0,
                "a run of {} rows at row {}, position {}", run.rows, run.first_row,
                run.first_position);
    FACET_CHECK(run.first_position + run.rows <= std::numeric_limits<int32_t>::max());
    row += run.rows;
  }
  FACET_CHECK(row == layout.rows, "runs of {} rows in a step of {}", row, layout.rows);
}

void CudaAttention::PadLayout(const StepLayout& layout) {
  rows_ = layout.rows;
  const int rows = context_.LaunchedRows(rows_, {});
  runs_.assign(layout.runs.begin(), layout.runs.end());
  for (int row = rows_; row < rows; ++row) {
    SequenceRun& run = runs_.emplace_back();
    run.first_row = row;
    run.rows = 1;
    for (int pool = 0; pool < kKvPools; ++pool) run.blocks[pool] = spare_blocks_[pool];
  }
  layout_ = {rows, runs_};
}

void CudaAttention::BeginStep(const StepLayout& layout) {
  CheckLayout(layout);
  PadLayout(layout);
  tables_.Restart();
  PutPositions(layout_);
  PutTiles(layout_);
  PutBegins(layout_);
  rotations_.resize(ropes_.size());
  for (int i = 0; i < static_cast<int>(ropes_.size()); ++i) PutRotations(layout_, i);
  PutBlocks(layout_);  // the last, because its size is not that of every step of so many rows
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
  const std::span<int32_t> first_rows = tables_.Make(layout.rows, &tiles_.first_rows);
  const std::span<int32_t> rows = tables_.Make(layout.rows, &tiles_.rows);
  for (const SequenceRun& run : layout.runs) {
    for (int done = 0; done < run.rows; done += kTileTokens) {
      const auto tile = static_cast<size_t>(tiles_.count++);
      first_rows[tile] = run.first_row + done;
      rows[tile] = std::min(run.rows - done, kTileTokens);
      tiles_.rows_max = std::max(tiles_.rows_max, rows[tile]);
    }
    if (run.first_row < rows_) own_tiles_ = tiles_.count;
  }
  if (!context_.launches->deferring()) return;
  // Another number of tiles would be another launch.
  std::fill(first_rows.begin() + tiles_.count, first_rows.end(), 0);
  std::fill(rows.begin() + tiles_.count, rows.end(), 0);
  tiles_.count = layout.rows;
  tiles_.rows_max = static_cast<int>(std::bit_ceil(static_cast<unsigned>(tiles_.rows_max)));
}

// Where each row's block table begins among those of all pools.
void CudaAttention::PutBegins(const StepLayout& layout) {
  size_t next = 0;
  for (size_t pool = 0; pool < places_.size(); ++pool) {
    const std::span<int32_t> begins = tables_.Make(layout.rows, &places_[pool].table_begins);
    for (const SequenceRun& run : layout.runs) {
      std::fill_n(begins.begin() + run.first_row, run.rows, static_cast<int32_t>(next));
      next += run.blocks[pool].size();
    }
  }
}

void CudaAttention::PutBlocks(const StepLayout& layout) {
  int64_t entries = 0;
  for (const SequenceRun& run : layout.runs) {
    for (const auto& blocks : run.blocks) entries += static_cast<int64_t>(blocks.size());
  }
  const int32_t* device = nullptr;
  auto to = tables_.Make(entries, &device).begin();
  for (size_t pool = 0; pool < places_.size(); ++pool) {
    for (const SequenceRun& run : layout.runs) {
      to = std::copy(run.blocks[pool].begin(), run.blocks[pool].end(), to);
    }
    places_[pool].blocks = device;
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
  FACET_CHECK(places_.front().positions != nullptr, "no step has begun");
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
  FACET_CHECK(rows_ * width <= qkv.size, "{} rows of {} in {} floats", rows_, width, qkv.size);
}

AttentionLayer CudaAttention::LayerOf(const AttentionSpec& spec) const {
  const auto pool = static_cast<size_t>(spec.pool);
  AttentionLayer layer;
  layer.pool.data = pools_[pool];
  layer.pool.blocks = specs_[pool].blocks + 1;
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
  const int64_t width = int64_t{spec.heads + 2 * spec.kv_heads} * spec.head_dim;
  const int rows = context_.LaunchedRows(rows_, {{qkv.size, width}});
  context_.launches->Put<&cuda::RopeAndStore>("rotation and store", LayerOf(spec), places, rows,
                                              qkv.data);
}

int CudaAttention::SplitsOf(const AttentionSpec& spec) const {
  int64_t most = 0;
  for (const SequenceRun& run : layout_.runs) {
    const int64_t last = run.first_position + run.rows - 1;
    most = std::max(most, last / kSplitTokens + 1);
  }
  if (context_.launches->deferring()) {
    most = most < bounds_.splits_per_pass
               ? static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(most)))
               : CeilDiv(most, bounds_.splits_per_pass) * bounds_.splits_per_pass;
  }
  if (spec.window > 0) most = std::min(most, CeilDiv(spec.window - 1, kSplitTokens) + 1);
  return static_cast<int>(most);
}

bool CudaAttention::OnTensorCores(const AttentionSpec& spec) const {
  return specs_[static_cast<size_t>(spec.pool)].type == KvType::kF16 &&
         spec.head_dim % kTensorHeadUnit == 0 && spec.head_dim <= kTensorHeadMax;
}

void CudaAttention::Attend(const AttentionSpec& spec, Floats qkv, Floats out) {
  CheckSpec(spec, qkv);
  const int64_t width = int64_t{spec.heads} * spec.head_dim;
  FACET_CHECK(rows_ * width <= out.size);
  const int rows = context_.LaunchedRows(
      rows_, {{out.size, width}, {qkv.size, width + 2 * int64_t{spec.kv_heads} * spec.head_dim}});
  if (rows == 0) return;
  AttentionPass pass;
  pass.qkv = qkv.data;
  pass.out = out.data;
  pass.totals = context_.workspace_floats();
  if (OnTensorCores(spec)) {
    AttendOnTensorCores(spec, rows, pass);
  } else {
    AttendInReferenceOrder(spec, rows, pass);
  }
}

int64_t CudaAttention::RoomFor(const AttentionSpec& spec) const {
  const int64_t room = context_.workspace_size() / PlaceOf(spec);
  FACET_CHECK(room >= 2, "{} heads of {} exceed the work space", spec.heads, spec.head_dim);
  return room;
}

void CudaAttention::AttendInReferenceOrder(const AttentionSpec& spec, int rows,
                                           AttentionPass pass) {
  const RowPlaces& places = places_[static_cast<size_t>(spec.pool)];
  const AttentionLayer layer = LayerOf(spec);
  const int64_t room = RoomFor(spec);
  const int splits = SplitsOf(spec);
  const int rows_step = static_cast<int>(std::min<int64_t>(rows, room / 2));
  for (pass.first_row = 0; pass.first_row < rows; pass.first_row += rows_step) {
    pass.rows = std::min(rows_step, rows - pass.first_row);
    pass.partials = pass.totals + pass.rows * PlaceOf(spec);
    const int step =
        static_cast<int>(std::min<int64_t>(bounds_.splits_per_pass, room / pass.rows - 1));
    ForPasses(splits, step, &pass,
              [&] { context_.launches->Put<&cuda::Attend>("attention", layer, places, pass); });
  }
}

void CudaAttention::AttendOnTensorCores(const AttentionSpec& spec, int rows, AttentionPass pass) {
  const RowPlaces& places = places_[static_cast<size_t>(spec.pool)];
  const AttentionLayer layer = LayerOf(spec);
  const int splits = SplitsOf(spec);
  RowTiles tiles = tiles_;
  if (rows < layout_.rows) tiles.count = own_tiles_;
  pass.rows = rows;
  pass.partials = pass.totals + pass.rows * PlaceOf(spec);
  const int step =
      static_cast<int>(std::min<int64_t>(bounds_.splits_per_pass, RoomFor(spec) / pass.rows - 1));
  pass.direct = splits == 1 || step < 1 || TileBlocks(layer, tiles) >= bounds_.full_blocks;
  ForPasses(splits, pass.direct ? splits : step, &pass, [&] {
    context_.launches->Put<&cuda::AttendTiles>("attention", layer, places, tiles, pass);
  });
}

}  // namespace facet::cuda
