#include "kernels/cpu/cpu_attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <tuple>
#include <utility>

#include "base/check.h"

namespace facet {
namespace {

// Enough queries to share the conversion of 64 keys and values, few enough for the second-level
// cache; half of it where that would leave a thread fewer than so many tiles.
constexpr int kTileQueries = 128;
constexpr int kTilesPerThread = 4;
// Of converted keys and values: without it those of some rows would fall into the same few sets of
// the first-level cache.
constexpr int kStridePadding = 16;
// So few queries read keys and values as they are stored: each is converted once or twice anyway.
constexpr int kFewQueries = 4;
// Tiles of more queries are work enough for one thread.
constexpr int kSlotQueries = 32;
// A job of fewer splits is not worth handing to another thread; of long contexts each thread gets
// about so many jobs, because the keys that a job begins with may come too late.
constexpr int64_t kJobSplits = 4;
constexpr int64_t kJobsPerThread = 8;

bool Grow(int64_t floats, AlignedBuffer* buffer) {
  const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
  if (buffer->size() >= bytes) return false;
  absl::StatusOr<AlignedBuffer> larger = AlignedBuffer::Make(bytes);
  FACET_CHECK(larger.ok(), "{}", larger.status().ToString());
  *buffer = *std::move(larger);
  return true;
}

void GrowZeroed(int64_t floats, AlignedBuffer* buffer) {
  if (!Grow(floats, buffer)) std::memset(buffer->data(), 0, buffer->size());
}

int64_t FirstKey(const AttentionSpec& spec, int64_t position) {
  return spec.window > 0 ? std::max<int64_t>(0, position - spec.window + 1) : 0;
}

}  // namespace

CpuAttention::CpuAttention(const KernelTable& kernels, ThreadPool* pool)
    : kernels_(kernels), pool_(*pool), scratch_(static_cast<size_t>(pool->threads())) {}

void CpuAttention::Run(const AttentionSpec& spec, const StepLayout& layout, KvMemory* kv,
                       const float* qkv, float* out, const QuantizedRows* inputs) {
  spec_ = &spec;
  layout_ = &layout;
  kv_ = kv;
  qkv_ = qkv;
  out_ = out;
  inputs_ = inputs;
  SizeScratch(spec.head_dim);
  CutTiles();
  CountMissing();
  CutJobs();
  pool_.ParallelFor(static_cast<int64_t>(jobs_.size()), [&](int64_t job, int thread) {
    RunJob(static_cast<size_t>(job), &scratch_[static_cast<size_t>(thread)]);
  });
  if (!shared_) return;
  pool_.ParallelFor(static_cast<int64_t>(tiles_.size()), [&](int64_t i, int thread) {
    const Tile& tile = tiles_[static_cast<size_t>(i)];
    if (tile.slot >= 0) MergeTile(tile, &scratch_[static_cast<size_t>(thread)]);
  });
}

// The padding of every vector stays zero from here on.
void CpuAttention::SizeScratch(int head_dim) {
  if (head_dim == head_dim_) return;
  head_dim_ = head_dim;
  dim_ = (head_dim + 15) / 16 * 16;
  stride_ = dim_ + kStridePadding;
  for (Scratch& scratch : scratch_) {
    const int64_t vectors = int64_t{kTileQueries} * dim_;
    const int64_t converted = int64_t{kSplitTokens} * stride_;
    const std::pair<float**, int64_t> arrays[] = {
        {&scratch.q, vectors},
        {&scratch.keys, converted},
        {&scratch.values, converted},
        {&scratch.weights, int64_t{kTileQueries} * kSplitTokens},
        {&scratch.out, vectors},
        {&scratch.total_out, vectors},
        {&scratch.max, kTileQueries},
        {&scratch.sum, kTileQueries},
        {&scratch.total_max, kTileQueries},
        {&scratch.total_sum, kTileQueries}};
    int64_t floats = 0;
    for (const auto& [array, size] : arrays) floats += size;
    GrowZeroed(floats, &scratch.memory);
    float* next = reinterpret_cast<float*>(scratch.memory.data());
    for (const auto& [array, size] : arrays) *array = std::exchange(next, next + size);
    scratch.begin.resize(kTileQueries);
    scratch.end.resize(kTileQueries);
  }
}

void CpuAttention::CutTiles() {
  tiles_.clear();
  heads_.clear();
  head_groups_ = 0;
  const int64_t queries = int64_t{layout_->rows} * spec_->heads;
  const bool many = queries >= int64_t{kTileQueries} * kTilesPerThread * pool_.threads();
  const int tile_queries = many ? kTileQueries : kTileQueries / 2;
  for (int kv_head = 0; kv_head < spec_->kv_heads; ++kv_head) {
    const int group = static_cast<int>(heads_.size());
    for (int head = 0; head < spec_->heads; ++head) {
      if (spec_->kv_of_head[static_cast<size_t>(head)] == kv_head) heads_.push_back(head);
    }
    const int group_end = static_cast<int>(heads_.size());
    for (int first_head = group; first_head < group_end; first_head += tile_queries) {
      const int heads = std::min(tile_queries, group_end - first_head);
      const int step = tile_queries / heads;
      ++head_groups_;
      for (const SequenceRun& run : layout_->runs) {
        // The last rows see most keys: first come, so that no thread starts one at the end.
        for (int row = (run.rows - 1) / step * step; row >= 0; row -= step) {
          const int rows = std::min(step, run.rows - row);
          const int64_t position = run.first_position + row;
          tiles_.push_back({&run, kv_head, first_head, heads, row, rows,
                            FirstKey(*spec_, position) / kSplitTokens,
                            (position + rows - 1) / kSplitTokens + 1});
        }
      }
    }
  }
}

void CpuAttention::CutJobs() {
  jobs_.clear();
  int64_t slots = 0;
  const bool few = pool_.threads() > 1 && static_cast<int>(tiles_.size()) < 4 * pool_.threads();
  for (Tile& tile : tiles_) {
    const int64_t splits = tile.last_split - tile.first_split;
    const bool share = few && tile.queries() <= kSlotQueries && splits >= 2 * kJobSplits;
    const int64_t even = splits / (kJobsPerThread * pool_.threads());
    const int64_t step = share ? std::max(kJobSplits, even) : splits;
    for (int64_t begin = tile.first_split; begin < tile.last_split; begin += step) {
      jobs_.push_back({&tile, begin, std::min(begin + step, tile.last_split)});
    }
    if (!share) continue;
    tile.slot = slots;
    slots += splits;
  }
  shared_ = slots > 0;
  Grow(slots * slot_floats(), &slots_);
}

int64_t CpuAttention::slot_floats() const { return int64_t{kSlotQueries} * (2 + dim_); }

bool CpuAttention::ReadsStored(const Tile& tile) const {
  return tile.queries() <= kFewQueries && dim_ == head_dim_;
}

void CpuAttention::RunJob(size_t index, Scratch* scratch) {
  const Job& job = jobs_[index];
  const Tile& tile = *job.tile;
  GatherQueries(tile, scratch);
  const Partials total = TotalsOf(*scratch);
  std::fill_n(total.sum, tile.queries(), 0.0f);
  for (int64_t split = job.begin; split < job.end; ++split) {
    SplitArgs args = PrepareSplit(tile, split, scratch);
    // What the first one gives to the queries that see it is their total so far.
    const bool first = tile.slot < 0 && split == job.begin;
    if (first) std::tie(args.max, args.sum, args.out) = std::tie(total.max, total.sum, total.out);
    if (ReadsStored(tile)) {
      ReadStored(index, split, &args, scratch);
    } else {
      ReadKeys(tile, split, scratch);
    }
    kernels_.attend_split(args);
    if (tile.slot < 0 && !first) kernels_.merge_split(args, total);
  }
  if (tile.slot < 0) WriteTile(tile, *scratch);
}

Partials CpuAttention::TotalsOf(const Scratch& scratch) {
  return {scratch.total_max, scratch.total_sum, scratch.total_out};
}

void CpuAttention::MergeTile(const Tile& tile, Scratch* scratch) {
  const Partials total = TotalsOf(*scratch);
  std::fill_n(total.sum, tile.queries(), 0.0f);
  for (int64_t split = tile.first_split; split < tile.last_split; ++split) {
    kernels_.merge_split(PrepareSplit(tile, split, scratch), total);
  }
  WriteTile(tile, *scratch);
}

void CpuAttention::GatherQueries(const Tile& tile, Scratch* scratch) const {
  const int64_t width = int64_t{spec_->heads + 2 * spec_->kv_heads} * spec_->head_dim;
  float* to = scratch->q;
  for (int row = 0; row < tile.rows; ++row) {
    const float* from = qkv_ + (tile.run->first_row + tile.first_row + row) * width;
    // Rows lie apart, and have left the second-level cache since they were written.
    const float* const next =
        from + width + heads_[static_cast<size_t>(tile.first_head)] * head_dim_;
    for (int i = 0; i < tile.heads * head_dim_; i += 16) __builtin_prefetch(next + i);
    for (int i = 0; i < tile.heads; ++i, to += dim_) {
      const int head = heads_[static_cast<size_t>(tile.first_head + i)];
      std::memcpy(to, from + int64_t{head} * spec_->head_dim,
                  static_cast<size_t>(spec_->head_dim) * sizeof(float));
    }
  }
}

// Which keys of the split each query sees, and where everything lies.
SplitArgs CpuAttention::PrepareSplit(const Tile& tile, int64_t split, Scratch* scratch) {
  const int64_t start = split * kSplitTokens;
  for (int row = 0; row < tile.rows; ++row) {
    const int64_t position = tile.run->first_position + tile.first_row + row;
    const int64_t begin = std::max(FirstKey(*spec_, position) - start, int64_t{0});
    const int64_t end = std::min(position + 1 - start, int64_t{kSplitTokens});
    const bool any = begin < end;
    for (int i = row * tile.heads; i < (row + 1) * tile.heads; ++i) {
      scratch->begin[static_cast<size_t>(i)] = any ? static_cast<int>(begin) : 0;
      scratch->end[static_cast<size_t>(i)] = any ? static_cast<int>(end) : 0;
    }
  }
  SplitArgs args;
  args.queries = tile.queries();
  args.dim = dim_;
  args.q = scratch->q;
  args.keys = scratch->keys;
  args.values = scratch->values;
  args.stride = stride_;
  args.begin = scratch->begin.data();
  args.end = scratch->end.data();
  args.scale = spec_->scale;
  args.soft_cap = spec_->soft_cap;
  args.weights = scratch->weights;
  args.max = scratch->max;
  args.sum = scratch->sum;
  args.out = scratch->out;
  if (tile.slot >= 0) {
    args.out = reinterpret_cast<float*>(slots_.data()) +
               (tile.slot + split - tile.first_split) * slot_floats();
    args.max = args.out + int64_t{args.queries} * dim_;
    args.sum = args.max + args.queries;
  }
  return args;
}

// The keys of one row follow on those of the row before it.
CpuAttention::KeyRange CpuAttention::KeysOf(const Tile& tile, int64_t split) const {
  const int64_t start = split * kSplitTokens;
  const int64_t position = tile.run->first_position + tile.first_row;
  return {std::max(FirstKey(*spec_, position) - start, int64_t{0}),
          std::min(position + tile.rows - start, int64_t{kSplitTokens})};
}

// Finds out where the keys and values that the tile sees of the split lie.
void CpuAttention::LocateKeys(const Tile& tile, int64_t split, StoredRows* rows) const {
  const KeyRange range = KeysOf(tile, split);
  const std::span<const int32_t> blocks = tile.run->blocks[static_cast<size_t>(spec_->pool)];
  const int block_tokens = kv_->spec().block_tokens;
  const int64_t row_bytes = int64_t{head_dim_} * kv_->element_bytes();
  for (int64_t i = range.begin; i < range.end;) {
    const int64_t position = split * kSplitTokens + i;
    const std::byte* key = kv_->Key(spec_->pool_layer, tile.kv_head, blocks, position);
    const std::byte* value = kv_->Value(spec_->pool_layer, tile.kv_head, blocks, position);
    const int64_t end = std::min(range.end, i + block_tokens - position % block_tokens);
    for (; i < end; ++i, key += row_bytes, value += row_bytes) {
      rows->keys[i] = key;
      rows->values[i] = value;
    }
  }
  for (const std::byte** list : {rows->keys, rows->values}) {
    std::fill(list, list + range.begin, list[range.begin]);
    std::fill(list + range.end, list + kSplitTokens, list[range.begin]);
  }
}

void CpuAttention::ReadStored(size_t job, int64_t split, SplitArgs* args, Scratch* scratch) const {
  const auto [tile, begin, end] = jobs_[job];
  StoredRows& rows = scratch->rows[split % 2];
  StoredRows& next = scratch->rows[1 - split % 2];
  // What this thread most likely does next: all threads take jobs in turn.
  const size_t following = job + static_cast<size_t>(pool_.threads());
  if (split == begin) LocateKeys(*tile, split, &rows);
  args->next_key_rows = next.keys;
  if (split + 1 < end) {
    LocateKeys(*tile, split + 1, &next);
  } else if (following < jobs_.size() && ReadsStored(*jobs_[following].tile)) {
    LocateKeys(*jobs_[following].tile, jobs_[following].begin, &next);
  } else {
    args->next_key_rows = rows.keys;
  }
  args->key_rows = rows.keys;
  args->value_rows = rows.values;
  args->half = kv_->spec().type == KvType::kF16;
}

// Converts the keys and values that the tile sees of the split, block by block.
void CpuAttention::ReadKeys(const Tile& tile, int64_t split, Scratch* scratch) const {
  const int64_t start = split * kSplitTokens;
  auto [begin, end] = KeysOf(tile, split);
  const std::span<const int32_t> blocks = tile.run->blocks[static_cast<size_t>(spec_->pool)];
  const int block_tokens = kv_->spec().block_tokens;
  const bool half = kv_->spec().type == KvType::kF16;
  const auto widen = [&](const std::byte* from, int count, float* to) {
    if (half) {
      kernels_.widen_half(reinterpret_cast<const uint16_t*>(from), count, spec_->head_dim, stride_,
                          to);
    } else {
      kernels_.widen_float(reinterpret_cast<const float*>(from), count, spec_->head_dim, stride_,
                           to);
    }
  };
  while (begin < end) {
    const int64_t position = start + begin;
    const int count =
        static_cast<int>(std::min<int64_t>(end - begin, block_tokens - position % block_tokens));
    widen(kv_->Key(spec_->pool_layer, tile.kv_head, blocks, position), count,
          scratch->keys + begin * stride_);
    widen(kv_->Value(spec_->pool_layer, tile.kv_head, blocks, position), count,
          scratch->values + begin * stride_);
    begin += count;
  }
}

void CpuAttention::CountMissing() {
  if (inputs_ == nullptr) return;
  missing_.clear();
  for (const ActivationTile& tile : inputs_->tiles()) missing_.push_back(tile.rows * head_groups_);
}

// Tiles of inputs have up to kTileRows rows: that of row r is not before the tile r / kTileRows.
void CpuAttention::QuantizeRowsOf(const Tile& tile) {
  int row = tile.run->first_row + tile.first_row;
  const int end = row + tile.rows;
  for (int i = row / kTileRows; row < end; ++i) {
    const int tile_end = inputs_->first_row(i + 1);
    if (tile_end <= row) continue;
    const int written = std::min(tile_end, end) - row;
    row += written;
    const auto index = static_cast<size_t>(i);
    // Who completes it sees what the others have written.
    if (std::atomic_ref<int>(missing_[index]).fetch_sub(written) == written) {
      kernels_.quantize_tile(inputs_->tiles()[index]);
    }
  }
}

void CpuAttention::WriteTile(const Tile& tile, const Scratch& scratch) {
  const int64_t width = int64_t{spec_->heads} * spec_->head_dim;
  int query = 0;
  for (int row = 0; row < tile.rows; ++row) {
    float* to = out_ + (tile.run->first_row + tile.first_row + row) * width;
    for (int i = 0; i < tile.heads; ++i, ++query) {
      const int head = heads_[static_cast<size_t>(tile.first_head + i)];
      kernels_.finish_query(scratch.total_out + int64_t{query} * dim_, scratch.total_sum[query],
                            spec_->head_dim, to + int64_t{head} * spec_->head_dim);
    }
  }
  if (inputs_ != nullptr) QuantizeRowsOf(tile);
}

}  // namespace facet
