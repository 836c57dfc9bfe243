#include "shard_worker/runtime/rank.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/prng.h"
#include "base/status.h"
#include "checkpoint/gguf.h"
#include "kernels/collectives/staged.h"
#include "shard_worker/model/forward.h"
#include "shard_worker/model/model_spec.h"
#include "shard_worker/model/shard_plan.h"
#include "shard_worker/model/weights.h"
#include "shard_worker/runtime/device_choice.h"
#include "shard_worker/runtime/plan_codec.h"
#include "shard_worker/runtime/profiled_device.h"
#include "shard_worker/runtime/sampler.h"
#include "shard_worker/runtime/sequence_slots.h"

namespace facet {
namespace {

constexpr int kBlockTokens = 32;
// Changes whenever any kernel's order of additions does: equal fingerprints promise equal bits.
constexpr int kArithmeticVersion = 1;
// The step number of the message that lets followers go.
constexpr uint64_t kStopStep = ~uint64_t{0};

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

absl::Status CheckOptions(const RankOptions& o) {
  if (o.world < 1) return InvalidArgument("world: {} is not positive", o.world);
  if (o.rank < 0 || o.rank >= o.world) {
    return InvalidArgument("rank: {} is outside [0, {})", o.rank, o.world);
  }
  if (o.threads < 1 || o.threads > 1024) {
    return InvalidArgument("threads: {} is outside [1, 1024]", o.threads);
  }
  if (o.kv_tokens < kBlockTokens || o.kv_tokens > (int64_t{1} << 30)) {
    return InvalidArgument("kv_tokens: {} is outside [{}, 2^30]", o.kv_tokens, kBlockTokens);
  }
  if (o.step_tokens_max < 1 || o.step_tokens_max > 65536) {
    return InvalidArgument("step_tokens: {} is outside [1, 65536]", o.step_tokens_max);
  }
  if (o.prefill_chunk_max < 0) {
    return InvalidArgument("prefill_chunk: {} is negative", o.prefill_chunk_max);
  }
  if (o.mixed_prefill_max < 0) {
    return InvalidArgument("mixed_prefill: {} is negative", o.mixed_prefill_max);
  }
  if (o.sequences_max < 1 || o.sequences_max > 65536) {
    return InvalidArgument("sequences: {} is outside [1, 65536]", o.sequences_max);
  }
  if (o.context_tokens < 0) {
    return InvalidArgument("context_tokens: {} is negative", o.context_tokens);
  }
  return absl::OkStatus();
}

class RankImpl;

class GroupExecutor : public Executor {
 public:
  explicit GroupExecutor(RankImpl* rank) : rank_(rank) {}
  absl::StatusOr<StepResult> Run(const StepPlan& plan) override;

 private:
  RankImpl* const rank_;
};

class RankImpl : public Rank {
 public:
  RankImpl(const RankOptions& options, GgufModel model)
      : options_(options), model_(std::move(model)), slots_(options.sequences_max) {}

  absl::Status Init() {
    FACET_ASSIGN_OR_RETURN(spec_, ReadModelSpec(model_));
    FACET_ASSIGN_OR_RETURN(plan_, ShardPlan::Make(model_, spec_, options_.world));
    SetFacts();
    FACET_RETURN_IF_ERROR(MakeDevice());
    FACET_RETURN_IF_ERROR(Load());
    device_->Label(weights_);
    FACET_ASSIGN_OR_RETURN(forward_,
                           Forward::Create(spec_, plan_, options_.rank, weights_, device_.get(),
                                           options_.step_tokens_max));
    forward_->OnProgress([this] { ++moved_; });
    FACET_RETURN_IF_ERROR(AllocateKv());
    sampler_.emplace(device_.get(), plan_.Slices(options_.rank), spec_.vocabulary);
    model_.ReleaseAll();
    return absl::OkStatus();
  }

  const ModelFacts& facts() const override { return facts_; }
  std::string device_name() const override { return device_->name(); }
  RankMemory memory() const override { return {weights_.packed_bytes, weights_.slice_bytes, kv_bytes_}; }

  uint64_t plan_hash() const override {
    uint64_t hash = Mix64(kArithmeticVersion, options_.world);
    for (const KvPoolSpec& pool : kv_pools_) {
      hash = Mix64(hash, (uint64_t(pool.blocks) << 32) | uint64_t(pool.block_tokens));
    }
    for (const uint64_t value :
         {uint64_t(options_.kv_type), uint64_t(options_.step_tokens_max),
          uint64_t(options_.sequences_max), uint64_t(facts_.context_tokens)}) {
      hash = Mix64(hash, value);
    }
    for (const char letter : device_->arithmetic()) hash = Mix64(hash, uint64_t(letter));
    return hash;
  }

  EngineOptions engine_options() const override {
    EngineOptions engine;
    engine.block_tokens = kBlockTokens;
    for (int pool = 0; pool < kKvPools; ++pool) engine.blocks[pool] = kv_pools_[pool].blocks;
    engine.window = window_;
    engine.context_tokens = facts_.context_tokens;
    engine.vocabulary_size = facts_.vocabulary_size;
    engine.step_tokens_max = options_.step_tokens_max;
    engine.sequences_max = options_.sequences_max;
    engine.prefill_chunk_max =
        options_.prefill_chunk_max > 0 ? options_.prefill_chunk_max : options_.step_tokens_max;
    engine.mixed_prefill_max =
        options_.mixed_prefill_max > 0 ? options_.mixed_prefill_max : options_.step_tokens_max;
    return engine;
  }

  void Attach(std::unique_ptr<Communicator> communicator) override {
    FACET_CHECK(communicator->rank() == options_.rank && communicator->world() == options_.world);
    communicator->SetTimeout(options_.step_timeout);
    slots_ = SequenceSlots(options_.sequences_max);
    const std::lock_guard lock(abort_mutex_);
    FACET_CHECK(communicator_ == nullptr, "the last epoch has not ended");
    communicator_ = device_->host_memory()
                        ? std::move(communicator)
                        : MakeStagedCommunicator(device_.get(), std::move(communicator));
  }

  void Detach() override {
    const std::lock_guard lock(abort_mutex_);
    communicator_.reset();
  }

  std::unique_ptr<Executor> MakeExecutor() override {
    FACET_CHECK(options_.rank == 0 && communicator_ != nullptr);
    return std::make_unique<GroupExecutor>(this);
  }

  absl::Status Follow() override {
    FACET_CHECK(options_.rank != 0 && communicator_ != nullptr);
    while (true) {
      std::vector<std::byte> message;
      FACET_RETURN_IF_ERROR(communicator_->Broadcast(&message));
      FACET_ASSIGN_OR_RETURN(const StepPlan plan, DecodePlan(message));
      if (plan.step == kStopStep) return absl::OkStatus();
      const InStep in_step(this);
      FACET_RETURN_IF_ERROR(RunStep(plan).status());
    }
  }

  absl::Status StopFollowers() override {
    if (options_.world == 1) return absl::OkStatus();
    StepPlan stop;
    stop.step = kStopStep;
    std::vector<std::byte> message = EncodePlan(stop);
    return communicator_->Broadcast(&message);
  }

  void Abort() override {
    const std::lock_guard lock(abort_mutex_);
    if (communicator_ != nullptr) communicator_->Abort();
  }

  RankProgress progress() const override { return {moved_, in_step_}; }

  void Profile(bool on) override { device_->Enable(on); }

  StepTimes TakeTimes() override {
    const std::lock_guard lock(times_mutex_);
    return std::exchange(times_, StepTimes());
  }

  absl::StatusOr<StepResult> LeadStep(const StepPlan& plan) {
    const InStep in_step(this);
    if (options_.world > 1) {
      std::vector<std::byte> message = EncodePlan(plan);
      FACET_RETURN_IF_ERROR(communicator_->Broadcast(&message));
    }
    return RunStep(plan);
  }

 private:
  // While it lives, the rank is in a step.
  class InStep {
   public:
    explicit InStep(RankImpl* rank) : rank_(rank) {
      ++rank_->moved_;
      rank_->in_step_ = true;
    }
    ~InStep() { rank_->in_step_ = false; }

   private:
    RankImpl* const rank_;
  };

  // A row of the step whose logits somebody needs.
  struct LogitRow {
    int32_t row;
    size_t segment;
    SampleRow sample;
  };

  absl::Status Load() {
    PackedCacheOptions files = options_.packed_cache;
    files.warn = options_.warn;
    PackedCache packed(std::move(files));
    WeightCache cache{.files = &packed, .load_threads = options_.threads, .warn = options_.warn};
    // The others of the group wait for the file that one of them packs.
    const unsigned processors = std::max(1u, std::thread::hardware_concurrency());
    cache.pack_threads = static_cast<int>(
        std::min<int64_t>(processors, int64_t{options_.threads} * options_.world));
    FACET_ASSIGN_OR_RETURN(
        weights_, LoadWeights(model_, spec_, plan_, options_.rank, device_.get(),
                              options_.screened_head, options_.progress,
                              options_.packed_cache.folder.empty() ? nullptr : &cache));
    return absl::OkStatus();
  }

  absl::Status MakeDevice() {
    std::unique_ptr<Device> device;
    if (options_.make_device) {
      device = options_.make_device();
    } else {
      DeviceChoice choice;
      choice.name = options_.device;
      choice.rank = options_.rank;
      choice.threads = options_.threads;
      choice.rows = std::max(options_.step_tokens_max, kLogitRowsMax);
      choice.sequences = options_.sequences_max;
      choice.context = facts_.context_tokens;
      FACET_ASSIGN_OR_RETURN(ChosenDevice chosen, ChooseDevice(choice));
      device = std::move(chosen.device);
      if (options_.notice) options_.notice(chosen.why);
    }
    device_ = std::make_unique<ProfiledDevice>(std::move(device));
    device_->Enable(options_.profile);
    if (!device_->arithmetic().empty()) facts_.fingerprint += "-" + device_->arithmetic();
    return absl::OkStatus();
  }

  absl::Status AllocateKv() {
    kv_pools_ = forward_->pools();
    const auto full_blocks = static_cast<int>((options_.kv_tokens + kBlockTokens - 1) /
                                              kBlockTokens);
    for (const LayerSpec& layer : spec_.layers) window_ = std::max(window_, layer.window);
    for (int pool = 0; pool < kKvPools; ++pool) {
      KvPoolSpec& spec = kv_pools_[pool];
      spec.block_tokens = kBlockTokens;
      spec.type = options_.kv_type;
      if (spec.layers > 0) spec.blocks = pool == kFullPool ? full_blocks : WindowBlocks(full_blocks);
      const int64_t element_bytes = spec.type == KvType::kF16 ? 2 : 4;
      kv_bytes_ += int64_t{2} * spec.layers * spec.blocks * spec.block_tokens * spec.kv_heads *
                   spec.head_dim * element_bytes;
    }
    return device_->AllocateKv(kv_pools_);
  }

  // What full_blocks worth of sequences can need: each at most its length and at most a window, a
  // chunk and two partly used blocks.
  int WindowBlocks(int full_blocks) const {
    const int64_t per_sequence =
        (window_ + options_.step_tokens_max + kBlockTokens - 1) / kBlockTokens + 2;
    return static_cast<int>(std::min<int64_t>(int64_t{full_blocks} + options_.sequences_max,
                                              per_sequence * options_.sequences_max));
  }

  void SetFacts() {
    facts_.architecture = spec_.architecture;
    facts_.description = spec_.description;
    for (const GgufTensor& tensor : model_.tensors()) facts_.parameters += tensor.elements();
    facts_.context_tokens = options_.context_tokens > 0
                                ? std::min(options_.context_tokens, spec_.context_tokens)
                                : spec_.context_tokens;
    facts_.vocabulary_size = static_cast<int>(spec_.vocabulary);
    facts_.digest = model_.digest();
    facts_.fingerprint =
        fmt::format("{:016x}-kv{}-a{}", facts_.digest,
                    options_.kv_type == KvType::kF16 ? "f16" : "f32", kArithmeticVersion);
  }

  absl::StatusOr<StepResult> RunStep(const StepPlan& plan) {
    const Communicator::Times idle = communicator_->TakeTimes();  // until the plan had come
    const Clock::time_point start = Clock::now();
    communicator_->SetStep(plan.step);
    slots_.Apply(plan);
    StepResult result;
    result.step = plan.step;
    if (!plan.segments.empty()) {
      FACET_ASSIGN_OR_RETURN(result.segments, Compute(plan));
    }
    CountTimes(SecondsSince(start), idle, !plan.segments.empty());
    return result;
  }

  absl::StatusOr<std::vector<SegmentResult>> Compute(const StepPlan& plan) {
    std::vector<TokenId> tokens;
    std::vector<SequenceRun> runs;
    std::vector<LogitRow> logit_rows;
    for (size_t i = 0; i < plan.segments.size(); ++i) {
      const Segment& segment = plan.segments[i];
      SequenceRun run;
      run.first_row = static_cast<int>(tokens.size());
      run.rows = static_cast<int>(segment.tokens.size());
      run.first_position = segment.first_position;
      for (int pool = 0; pool < kKvPools; ++pool) run.blocks[pool] = segment.blocks[pool];
      runs.push_back(run);
      AddLogitRows(segment, i, run.first_row, &logit_rows);
      for (const TokenId token : segment.tokens) {
        tokens.push_back(token == kSampledToken ? slots_[segment.slot].last_sampled() : token);
      }
    }
    const StepLayout layout{static_cast<int>(tokens.size()), runs};
    FACET_CHECK(layout.rows <= options_.step_tokens_max, "{} rows", layout.rows);
    std::vector<int32_t> wanted;
    for (const LogitRow& row : logit_rows) wanted.push_back(row.row);
    FACET_RETURN_IF_ERROR(forward_->Run(layout, tokens, wanted, communicator_.get()));
    std::vector<SegmentResult> results(plan.segments.size());
    for (size_t first = 0; first < logit_rows.size(); first += kLogitRowsMax) {
      const size_t count = std::min<size_t>(kLogitRowsMax, logit_rows.size() - first);
      FACET_RETURN_IF_ERROR(
          ComputeLogits(plan, std::span(logit_rows).subspan(first, count), &results));
      ++moved_;
    }
    for (size_t i = 0; i < results.size(); ++i) {
      SequenceState& state = slots_[plan.segments[i].slot];
      for (const ScoredToken& token : results[i].sampled) state.Append(token.id);
      if (state.logits_digest()) results[i].logits_sha256 = state.digest().Digest();
    }
    return results;
  }

  void AddLogitRows(const Segment& segment, size_t index, int first_row,
                    std::vector<LogitRow>* rows) {
    const SequenceState& state = slots_[segment.slot];
    const int count = static_cast<int>(segment.tokens.size());
    const int known = count - segment.proposals;
    for (int i = 0; i < count; ++i) {
      SampleRow sample;
      sample.state = &state;
      sample.position = segment.first_position + i;
      sample.sample = segment.sample && i >= known - 1;
      if (i >= known) sample.assumed = std::span(segment.tokens).subspan(known, i - known + 1);
      if (segment.score_prompt) {
        if (i + 1 < count) {
          sample.score = segment.tokens[i + 1];
        } else {
          sample.score = segment.next_prompt_token;
        }
      }
      if (sample.sample || sample.score || state.logits_digest()) {
        rows->push_back({first_row + i, index, sample});
      }
    }
  }

  absl::Status ComputeLogits(const StepPlan& plan, std::span<const LogitRow> rows,
                             std::vector<SegmentResult>* results) {
    std::vector<int32_t> step_rows;
    std::vector<SampleRow> samples;
    for (const LogitRow& row : rows) {
      step_rows.push_back(row.row);
      samples.push_back(row.sample);
    }
    // Where no row needs its logits, the output layer is searched and they are never written.
    const bool whole = std::any_of(rows.begin(), rows.end(), [](const LogitRow& row) {
      return row.sample.state->logits_digest() || Sampler::NeedsLogits(row.sample);
    });
    const Floats logits = whole ? forward_->Logits(step_rows) : Floats();
    FACET_ASSIGN_OR_RETURN(
        const std::vector<SampleOutcome> outcomes,
        whole ? sampler_->Run(logits, samples, communicator_.get()) : Search(step_rows, samples));
    for (size_t i = 0; i < rows.size(); ++i) {
      const Segment& segment = plan.segments[rows[i].segment];
      SegmentResult& result = (*results)[rows[i].segment];
      const SampleOutcome& outcome = outcomes[i];
      if (!Counts(samples[i], outcome, result)) continue;
      SequenceState& state = slots_[segment.slot];
      if (state.logits_digest()) FACET_RETURN_IF_ERROR(HashRow(logits, i, &state));
      result.finite = result.finite && outcome.finite;
      if (outcome.scored) result.prompt.push_back(*outcome.scored);
      if (outcome.sampled) result.sampled.push_back(*outcome.sampled);
    }
    return absl::OkStatus();
  }

  // Whether a row, of a segment whose rows before it gave `result`, is one of the sequence: if it
  // has a proposal, all up to this one were right. One with logits that are no numbers is left for
  // the next step, where it is no proposal: the tokens before it are good.
  static bool Counts(const SampleRow& row, const SampleOutcome& outcome,
                     const SegmentResult& result) {
    if (row.assumed.empty()) return true;
    return outcome.finite && result.sampled.size() == row.assumed.size() &&
           result.sampled.back().id == row.assumed.back();
  }

  absl::StatusOr<std::vector<SampleOutcome>> Search(std::span<const int32_t> step_rows,
                                                    std::span<const SampleRow> samples) {
    return sampler_->Search(
        [&](std::span<const CandidateQuery> queries, std::span<CandidateReply> replies) {
          forward_->Search(step_rows, sampler_->slices(), queries, replies);
        },
        samples, communicator_.get());
  }

  // Adds one row of logits, assembled from all ranks in vocabulary order, to a sequence's digest.
  absl::Status HashRow(Floats logits, size_t index, SequenceState* state) {
    const int64_t mine = forward_->vocabulary_rows();
    std::vector<float> slice(static_cast<size_t>(mine));
    device_->CopyOut(Floats{logits.data + static_cast<int64_t>(index) * mine, mine}, slice);
    std::vector<std::vector<std::byte>> slices;  // in host memory, whatever the device's
    FACET_RETURN_IF_ERROR(communicator_->AllGatherBytes(std::as_bytes(std::span(slice)), &slices));
    for (const std::vector<std::byte>& part : slices) {
      state->digest().Update(part.data(), part.size());
    }
    return absl::OkStatus();
  }

  void CountTimes(double total_s, const Communicator::Times& idle, bool computed) {
    const Communicator::Times collective = communicator_->TakeTimes();
    const std::lock_guard lock(times_mutex_);
    if (computed) {
      ++times_.steps;
      if (device_->on()) times_.profile.Add(ProfileOf(total_s, collective));
    }
    times_.wait_s += idle.wait_s + collective.wait_s;
    times_.collective_s += idle.work_s + collective.work_s;
    const HeadReads reads = device_->head_reads();
    times_.head.rows += reads.rows - counted_.rows;
    times_.head.screened += reads.screened - counted_.screened;
    times_.head.completed += reads.completed - counted_.completed;
    times_.head.bytes += reads.bytes - counted_.bytes;
    counted_ = reads;
    times_.compute_s += std::max(0.0, total_s - collective.wait_s - collective.work_s);
  }

  // Of the step just run: what the device counted, and the rest of its time.
  StepProfile ProfileOf(double total_s, const Communicator::Times& collective) {
    StepProfile profile = device_->Take();
    profile.steps = 1;
    profile.seconds = total_s;
    profile[StepOperation::kCollectives].calls = profile[StepOperation::kWait].calls = 1;
    profile[StepOperation::kCollectives].seconds = collective.work_s;
    profile[StepOperation::kWait].seconds = collective.wait_s;
    double known_s = 0;
    for (const OperationTotals& operation : profile.operations) known_s += operation.seconds;
    profile[StepOperation::kOther].seconds += std::max(0.0, total_s - known_s);
    return profile;
  }

  const RankOptions options_;
  GgufModel model_;
  ModelSpec spec_;
  ShardPlan plan_;
  std::unique_ptr<ProfiledDevice> device_;
  Weights weights_;
  std::unique_ptr<Forward> forward_;
  std::optional<Sampler> sampler_;
  std::array<KvPoolSpec, kKvPools> kv_pools_;
  int64_t kv_bytes_ = 0;
  int64_t window_ = 0;
  ModelFacts facts_;
  SequenceSlots slots_;
  std::mutex abort_mutex_;  // Abort() may come from any thread, also before Attach()
  std::unique_ptr<Communicator> communicator_;
  std::atomic<uint64_t> moved_ = 0;
  std::atomic<bool> in_step_ = false;
  std::mutex times_mutex_;
  StepTimes times_;
  HeadReads counted_;  // of the device's, in times_ already
};

absl::StatusOr<StepResult> GroupExecutor::Run(const StepPlan& plan) {
  return rank_->LeadStep(plan);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Rank>> Rank::Load(const RankOptions& options) {
  FACET_RETURN_IF_ERROR(CheckOptions(options));
  FACET_ASSIGN_OR_RETURN(GgufModel model, GgufModel::Open(options.model_path));
  auto rank = std::make_unique<RankImpl>(options, std::move(model));
  FACET_RETURN_IF_ERROR(rank->Init());
  return rank;
}

}  // namespace facet
