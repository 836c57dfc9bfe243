#include "shard_worker/runtime/profiled_device.h"

#include <algorithm>
#include <chrono>

namespace facet {

ProfiledDevice::ProfiledDevice(std::unique_ptr<Device> device, Seconds seconds)
    : ForwardingDevice(std::move(device)), seconds_(seconds) {}

double ProfiledDevice::SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <typename Call, typename WorkOf>
void ProfiledDevice::Count(StepOperation operation, const Call& call, const WorkOf& work) {
  if (!on_) return call();
  const double start = seconds_();
  call();
  Synchronize();
  OperationTotals& totals = profile_[operation];
  totals.seconds += seconds_() - start;
  const Work done = work();
  ++totals.calls;
  totals.bytes += done.bytes;
  totals.operations += done.operations;
}

void ProfiledDevice::Label(const Weights& weights) {
  labels_[&weights.head()] = StepOperation::kHead;
  for (const LayerWeights& layer : weights.layers) {
    labels_[layer.query.get()] = StepOperation::kQkv;
    labels_[layer.key.get()] = StepOperation::kQkv;  // of rows without queries
    labels_[layer.attention_output.get()] = StepOperation::kAttentionOutput;
    labels_[layer.down.get()] = StepOperation::kDown;
  }
}

StepOperation ProfiledDevice::LabelOf(const Matrix& matrix) const {
  const auto found = labels_.find(&matrix);
  return found == labels_.end() ? StepOperation::kOther : found->second;
}

absl::Status ProfiledDevice::AllocateKv(const std::array<KvPoolSpec, kKvPools>& pools) {
  for (size_t pool = 0; pool < pools.size(); ++pool) kv_types_[pool] = pools[pool].type;
  return ForwardingDevice::AllocateKv(pools);
}

void ProfiledDevice::BeginStep(const StepLayout& layout) {
  on_ = wanted_;
  layout_ = &layout;
  if (on_) profile_.rows += layout.rows;
  Count(StepOperation::kOther, [&] { ForwardingDevice::BeginStep(layout); });
}

void ProfiledDevice::NarrowStep(const StepLayout& layout) {
  layout_ = &layout;
  Count(StepOperation::kOther, [&] { ForwardingDevice::NarrowStep(layout); });
}

void ProfiledDevice::EmbedRows(const Matrix& table, int32_t first_token,
                               std::span<const int32_t> rows, float scale, Floats out) {
  Count(
      StepOperation::kEmbedding,
      [&] { ForwardingDevice::EmbedRows(table, first_token, rows, scale, out); },
      [&] {
        const double share = static_cast<double>(rows.size()) / static_cast<double>(table.rows());
        return Work{share * static_cast<double>(table.packed_bytes()), 0};
      });
}

void ProfiledDevice::GatherRows(Floats x, std::span<const int32_t> rows, int width, Floats out) {
  Count(StepOperation::kOther, [&] { ForwardingDevice::GatherRows(x, rows, width, out); });
}

void ProfiledDevice::GatherBrought(const BroughtRows& brought, int width, Floats out) {
  Count(StepOperation::kOther, [&] { ForwardingDevice::GatherBrought(brought, width, out); });
}

void ProfiledDevice::RmsNorm(Floats x, int rows, int width, Floats weight, float epsilon,
                             Floats out) {
  Count(StepOperation::kNorms,
        [&] { ForwardingDevice::RmsNorm(x, rows, width, weight, epsilon, out); });
}

void ProfiledDevice::ResidualNorm(const ResidualNormArgs& args) {
  Count(StepOperation::kNorms, [&] { ForwardingDevice::ResidualNorm(args); });
}

void ProfiledDevice::Product(std::span<const Matrix* const> parts, Floats x, int rows, Floats out) {
  Count(
      on_ ? LabelOf(*parts.front()) : StepOperation::kOther,
      [&] { ForwardingDevice::Product(parts, x, rows, out); },
      [&] {
        Work work;
        for (const Matrix* part : parts) {
          work.bytes += static_cast<double>(part->packed_bytes());
          work.operations += 2.0 * static_cast<double>(part->columns() * part->rows() * rows);
        }
        return work;
      });
}

void ProfiledDevice::GatedProduct(Activation activation, const Matrix& gate, const Matrix& up,
                                  Floats x, int rows, Floats out) {
  Count(
      StepOperation::kGated,
      [&] { ForwardingDevice::GatedProduct(activation, gate, up, x, rows, out); },
      [&] {
        return Work{static_cast<double>(gate.packed_bytes() + up.packed_bytes()),
                    4.0 * static_cast<double>(gate.columns() * gate.rows() * rows)};
      });
}

void ProfiledDevice::ProductRoots(const Matrix& matrix, Floats x, int rows, Floats roots) {
  Count(
      on_ ? LabelOf(matrix) : StepOperation::kOther,
      [&] { ForwardingDevice::ProductRoots(matrix, x, rows, roots); },
      [&] {
        return Work{static_cast<double>(matrix.packed_bytes()),
                    2.0 * static_cast<double>(matrix.columns() * matrix.rows() * rows)};
      });
}

void ProfiledDevice::RopeAndStore(const AttentionSpec& spec, Floats qkv) {
  Count(StepOperation::kNorms, [&] { ForwardingDevice::RopeAndStore(spec, qkv); });
}

// A run's keys are counted once, whatever its rows: they lie in a cache for the later ones.
ProfiledDevice::Work ProfiledDevice::AttentionWork(const AttentionSpec& spec) const {
  double read = 0, pairs = 0;
  for (const SequenceRun& run : layout_->runs) {
    const int64_t end = run.first_position + run.rows;
    const int64_t first =
        spec.window > 0 ? std::max<int64_t>(0, run.first_position + 1 - spec.window) : 0;
    read += static_cast<double>(end - first);
    for (int64_t seen = run.first_position + 1; seen <= end; ++seen) {
      pairs += static_cast<double>(spec.window > 0 ? std::min(seen, spec.window) : seen);
    }
  }
  const KvType type = kv_types_[static_cast<size_t>(spec.pool)];
  const double element_bytes = type == KvType::kF16 ? 2 : 4;
  return {2 * read * spec.kv_heads * spec.head_dim * element_bytes,
          4 * pairs * spec.heads * spec.head_dim};
}

void ProfiledDevice::Attend(const AttentionSpec& spec, Floats qkv, Floats out) {
  Count(
      StepOperation::kAttention, [&] { ForwardingDevice::Attend(spec, qkv, out); },
      [&] { return AttentionWork(spec); });
}

void ProfiledDevice::SoftCap(Floats x, int64_t size, float cap) {
  Count(StepOperation::kHead, [&] { ForwardingDevice::SoftCap(x, size, cap); });
}

void ProfiledDevice::FindCandidates(Floats logits, const VocabularySlices& slices,
                                    const CandidateQuery& query, CandidateReply* reply) {
  Count(StepOperation::kHead,
        [&] { ForwardingDevice::FindCandidates(logits, slices, query, reply); });
}

void ProfiledDevice::SearchHead(const HeadSearch& search, std::span<CandidateReply> replies) {
  if (!on_) return ForwardingDevice::SearchHead(search, replies);
  const double before = head_reads().bytes;
  double agreeing = 0;  // with other ranks: the communicator's time, not the head's
  HeadSearch timed = search;
  if (search.agree) {
    timed.agree = [&](std::span<float> floors) {
      const double start = seconds_();
      search.agree(floors);
      agreeing += seconds_() - start;
    };
  }
  Count(
      StepOperation::kHead, [&] { ForwardingDevice::SearchHead(timed, replies); },
      [&] { return HeadWork(search, before); });
  profile_[StepOperation::kHead].seconds -= agreeing;
}

void ProfiledDevice::AskHead(const HeadSearch& search, Floats best) {
  const double before = on_ ? head_reads().bytes : 0;
  Count(
      StepOperation::kHead, [&] { ForwardingDevice::AskHead(search, best); },
      [&] { return HeadWork(search, before); });
}

void ProfiledDevice::KeepBest(Floats all, int ranks, std::span<const int32_t> keep) {
  Count(StepOperation::kHead, [&] { ForwardingDevice::KeepBest(all, ranks, keep); });
}

ProfiledDevice::Work ProfiledDevice::HeadWork(const HeadSearch& search, double bytes_before) const {
  const auto rows = static_cast<double>(search.queries.size());
  return {head_reads().bytes - bytes_before, 2 * rows *
                                                 static_cast<double>(search.head->columns()) *
                                                 static_cast<double>(search.head->rows())};
}

}  // namespace facet
