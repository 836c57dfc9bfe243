#include "kernels/host/host_device.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/best_key.h"

namespace facet {

absl::StatusOr<Floats> HostDevice::AllocateFloats(int64_t size) {
  if (size < 0) return InvalidArgument("an array of {} floats", size);
  FACET_ASSIGN_OR_RETURN(AlignedBuffer buffer,
                         AlignedBuffer::Make(static_cast<size_t>(size) * sizeof(float)));
  floats_.push_back(std::move(buffer));
  return Floats{reinterpret_cast<float*>(floats_.back().data()), size};
}

absl::Status HostDevice::AllocateKv(const std::array<KvPoolSpec, kKvPools>& pools) {
  for (size_t i = 0; i < pools.size(); ++i) FACET_RETURN_IF_ERROR(kv_[i].Allocate(pools[i]));
  return absl::OkStatus();
}

absl::Status HostDevice::AllocateTokens(int places) {
  FACET_CHECK(tokens_.empty(), "there are places for tokens already");
  tokens_.assign(static_cast<size_t>(places), 0);
  return absl::OkStatus();
}

std::optional<int32_t> HostDevice::TableRow(const Matrix& table, int32_t first_token,
                                            int32_t row) const {
  if (!IsKept(row)) {
    FACET_CHECK(row < table.rows(), "row {} of {}", row, table.rows());
    return row;
  }
  const int32_t kept = tokens_.at(static_cast<size_t>(PlaceOfKept(row))) - first_token;
  return kept >= 0 && kept < table.rows() ? std::optional(kept) : std::nullopt;
}

void HostDevice::AskHead(const HeadSearch& search, Floats best) {
  FACET_CHECK(!search.agree, "an answer that others wait for cannot be read later");
  const auto rows = static_cast<int64_t>(search.queries.size());
  FACET_CHECK(rows * kBestKeyFloats <= best.size, "{} keys in {} floats", rows, best.size);
  std::vector<CandidateReply> replies(search.queries.size());
  SearchHead(search, replies);
  float* to = best.data;
  for (const CandidateReply& reply : replies) {
    BestKey key = reply.finite ? kNoKey : kNotFiniteKey;
    if (!reply.best.empty()) key = BestKeyOf(reply.best[0].order, reply.best[0].id);
    std::memcpy(to, &key, sizeof(key));
    to += kBestKeyFloats;
  }
}

void HostDevice::KeepBest(Floats all, int ranks, std::span<const int32_t> keep) {
  const auto rows = static_cast<size_t>(all.size / (ranks * kBestKeyFloats));  // of each rank
  FACET_CHECK(keep.size() <= rows, "{} rows of {}", keep.size(), rows);
  std::vector<BestToken>& tokens = unread_.emplace_back(keep.size());
  for (size_t row = 0; row < keep.size(); ++row) {
    BestKey best = kNoKey;
    for (size_t rank = 0; rank < static_cast<size_t>(ranks); ++rank) {
      BestKey key = kNoKey;
      std::memcpy(&key, all.data + (rank * rows + row) * kBestKeyFloats, sizeof(key));
      best = std::max(best, key);
    }
    tokens[row] = BestTokenOf(best);
    if (keep[row] >= 0) tokens_.at(static_cast<size_t>(keep[row])) = tokens[row].id;
  }
}

absl::Status HostDevice::ReadBest(std::span<BestToken> tokens) {
  FACET_CHECK(!unread_.empty() && unread_.front().size() == tokens.size(), "{} tokens",
              tokens.size());
  std::copy(unread_.front().begin(), unread_.front().end(), tokens.begin());
  unread_.pop_front();
  return absl::OkStatus();
}

int HostDevice::AddRope(RopeSpec spec) {
  ropes_.push_back(std::move(spec));
  return static_cast<int>(ropes_.size()) - 1;
}

void HostDevice::CopyIn(std::span<const float> host, Floats device) {
  FACET_CHECK(static_cast<int64_t>(host.size()) <= device.size, "{} floats into {}", host.size(),
              device.size);
  std::copy(host.begin(), host.end(), device.data);
}

void HostDevice::CopyOut(Floats device, std::span<float> host) {
  FACET_CHECK(static_cast<int64_t>(host.size()) <= device.size, "{} floats out of {}", host.size(),
              device.size);
  std::copy_n(device.data, host.size(), host.begin());
}

void HostDevice::BeginStep(const StepLayout& layout) {
  int row = 0;
  for (const SequenceRun& run : layout.runs) {
    FACET_CHECK(run.first_row == row && run.rows > 0 && run.first_position >= 0,
                "a run of {} rows at row {}, position {}", run.rows, run.first_row,
                run.first_position);
    row += run.rows;
  }
  FACET_CHECK(row == layout.rows, "runs of {} rows in a step of {}", row, layout.rows);
  layout_ = &layout;
}

void HostDevice::GatherRows(Floats x, std::span<const int32_t> rows, int width, Floats out) {
  FACET_CHECK(static_cast<int64_t>(rows.size()) * width <= out.size);
  float* to = out.data;
  for (const int32_t row : rows) {
    FACET_CHECK(row >= 0 && (int64_t{row} + 1) * width <= x.size, "row {}", row);
    to = std::copy_n(x.data + int64_t{row} * width, width, to);
  }
}

void HostDevice::GatherBrought(const BroughtRows& brought, int width, Floats out) {
  FACET_CHECK(brought.token_ends.size() == brought.begins.size(), "{} ends, {} begins",
              brought.token_ends.size(), brought.begins.size());
  gathered_.clear();
  for (const BroughtRow& row : brought.rows) {
    int32_t begin = 0;
    if (row.place >= 0) {
      const int32_t token = tokens_.at(static_cast<size_t>(row.place));
      const auto owner = std::ranges::upper_bound(brought.token_ends, token);
      FACET_CHECK(owner != brought.token_ends.end(), "nobody owns token {}", token);
      begin = brought.begins[static_cast<size_t>(owner - brought.token_ends.begin())];
    }
    gathered_.push_back(begin + row.row);
  }
  GatherRows(brought.x, gathered_, width, out);
}

void HostDevice::CheckAttention(const AttentionSpec& spec, Floats qkv) {
  FACET_CHECK(layout_ != nullptr, "no step has begun");
  FACET_CHECK(spec.pool >= 0 && spec.pool < kKvPools, "pool {}", spec.pool);
  const KvPoolSpec& pool = kv(spec.pool).spec();
  FACET_CHECK(pool.kv_heads == spec.kv_heads && pool.head_dim == spec.head_dim,
              "{} KV heads of {} in a pool of {} of {}", spec.kv_heads, spec.head_dim,
              pool.kv_heads, pool.head_dim);
  FACET_CHECK(static_cast<int>(spec.kv_of_head.size()) == spec.heads, "{} heads mapped of {}",
              spec.kv_of_head.size(), spec.heads);
  for (const int kv_head : spec.kv_of_head) {
    FACET_CHECK(kv_head >= 0 && kv_head < spec.kv_heads, "KV head {}", kv_head);
  }
  FACET_CHECK(spec.rope < static_cast<int>(ropes_.size()), "rope {}", spec.rope);
  if (spec.rope >= 0) {
    FACET_CHECK(2 * static_cast<int64_t>(rope(spec.rope).inverse_frequency.size()) <=
                spec.head_dim);
  }
  const int64_t width = int64_t{spec.heads + 2 * spec.kv_heads} * spec.head_dim;
  FACET_CHECK(layout_->rows * width <= qkv.size, "{} rows of {} in {} floats", layout_->rows, width,
              qkv.size);
}

}  // namespace facet
