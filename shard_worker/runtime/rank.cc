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
#include "shard_worker/runtime/step_runner.h"

namespace facet {
namespace {

constexpr int kBlockTokens = 32;
// Changes whenever any kernel's order of additions does: equal fingerprints promise equal bits.
constexpr int kArithmeticVersion = 1;
// The step number of the message that lets followers go.
constexpr uint64_t kStopStep = ~uint64_t{0};

// How much of a prompt a processor computes at a time if nobody says otherwise: the activations of
// as many rows nearly fit into its second-level cache (kernels/README.md has the figures).
constexpr int kHostPrefillChunk = 256;

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
  bool MayBegin(const StepPlan& plan) const override;
  absl::Status Begin(const StepPlan& plan) override;
  absl::StatusOr<StepResult> End() override;

 private:
  RankImpl* const rank_;
};

class RankImpl : public Rank {
 public:
  RankImpl(const RankOptions& options, GgufModel model)
      : options_(options), model_(std::move(model)) {}

  absl::Status Init() {
    FACET_ASSIGN_OR_RETURN(spec_, ReadModelSpec(model_));
    FACET_ASSIGN_OR_RETURN(plan_, ShardPlan::Make(model_, spec_, options_.world));
    SetFacts();
    FACET_RETURN_IF_ERROR(MakePlacement(options_.placement));
    FACET_RETURN_IF_ERROR(MakeDevice());
    // The thread that drives another device computes little.
    if (!device_->host_memory()) FACET_RETURN_IF_ERROR(MakePlacement({}));
    if (options_.notice) options_.notice(placement_->plan().why);
    const Placement::OnNode on_node(*placement_);
    FACET_RETURN_IF_ERROR(Load());
    device_->Label(weights_);
    FACET_ASSIGN_OR_RETURN(forward_, Forward::Create(spec_, plan_, options_.rank, weights_,
                                                     device_.get(), options_.step_tokens_max,
                                                     CanOverlap() ? options_.sequences_max : 0));
    forward_->OnProgress([this] { ++moved_; });
    FACET_RETURN_IF_ERROR(AllocateKv());
    StepRunner::Options steps;
    steps.sequences_max = options_.sequences_max;
    steps.step_tokens_max = options_.step_tokens_max;
    steps.slices = plan_.Slices(options_.rank);
    steps.vocabulary = spec_.vocabulary;
    steps.context_tokens = facts_.context_tokens;
    steps.progress = [this] { ++moved_; };
    steps_.emplace(std::move(steps), forward_.get(), device_.get());
    model_.ReleaseAll();
    return absl::OkStatus();
  }

  const ModelFacts& facts() const override { return facts_; }
  std::string device_name() const override { return device_->name(); }
  std::string gpu_bus_id() const override { return gpu_bus_id_; }
  RankMemory memory() const override {
    return {weights_.packed_bytes, weights_.slice_bytes, kv_bytes_};
  }

  uint64_t plan_hash() const override {
    uint64_t hash = Mix64(kArithmeticVersion, options_.world);
    for (const KvPoolSpec& pool : kv_pools_) {
      hash = Mix64(hash, (uint64_t(pool.blocks) << 32) | uint64_t(pool.block_tokens));
    }
    for (const uint64_t value :
         {uint64_t(CanOverlap()), uint64_t(options_.kv_type), uint64_t(options_.step_tokens_max),
          uint64_t(options_.sequences_max), uint64_t(facts_.context_tokens)}) {
      hash = Mix64(hash, value);
    }
    for (const char letter : device_->arithmetic()) hash = Mix64(hash, uint64_t(letter));
    return hash;
  }

  DeviceCollectives* collectives() override { return device_->collectives(); }

  EngineOptions engine_options() const override {
    EngineOptions engine;
    engine.block_tokens = kBlockTokens;
    for (int pool = 0; pool < kKvPools; ++pool) engine.blocks[pool] = kv_pools_[pool].blocks;
    engine.window = window_;
    engine.context_tokens = facts_.context_tokens;
    engine.vocabulary_size = facts_.vocabulary_size;
    engine.step_tokens_max = options_.step_tokens_max;
    engine.sequences_max = options_.sequences_max;
    engine.steps_max = overlap_ ? 2 : 1;
    engine.prefill_chunk_max = PrefillChunkMax();
    engine.mixed_prefill_max =
        options_.mixed_prefill_max > 0 ? options_.mixed_prefill_max : options_.step_tokens_max;
    return engine;
  }

  void Attach(std::unique_ptr<Communicator> communicator) override {
    FACET_CHECK(communicator->rank() == options_.rank && communicator->world() == options_.world);
    communicator->SetTimeout(options_.step_timeout);
    steps_->Reset();
    const std::lock_guard lock(abort_mutex_);
    FACET_CHECK(communicator_ == nullptr, "the last epoch has not ended");
    // Where data goes through the host a step cannot begin before the one before it has ended.
    const bool staged = !device_->host_memory() && !communicator->on_device();
    overlap_ = CanOverlap() && options_.overlap.value_or(options_.world == 1 || !staged);
    communicator_ = staged ? MakeStagedCommunicator(device_.get(), std::move(communicator))
                           : std::move(communicator);
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
    StepForm form = StepForm::kWhole;
    for (StepPlan plan;;) {
      FACET_RETURN_IF_ERROR(communicator_->Broadcast(&message_));
      FACET_RETURN_IF_ERROR(DecodePlan(message_, &plan, &form));
      if (plan.step == kStopStep) return absl::OkStatus();
      const InStep in_step(this);
      FACET_RETURN_IF_ERROR(FollowStep(plan, form));
    }
  }

  absl::Status StopFollowers() override {
    if (options_.world == 1) return absl::OkStatus();
    StepPlan stop;
    stop.step = kStopStep;
    return SendPlan(stop, StepForm::kWhole);
  }

  void Abort() override {
    const std::lock_guard lock(abort_mutex_);
    if (communicator_ != nullptr) communicator_->Abort();
  }

  RankProgress progress() const override { return {moved_, in_step_}; }

  void Profile(bool on) override { device_->Enable(on); }

  StepTimes TakeTimes() override {
    const std::lock_guard lock(look_mutex_);
    StepTimes times = published_.Load();
    times.Subtract(std::exchange(seen_, times));
    return times;
  }

  absl::StatusOr<StepResult> LeadStep(const StepPlan& plan) {
    const InStep in_step(this);
    if (options_.world > 1) FACET_RETURN_IF_ERROR(SendPlan(plan, StepForm::kWhole));
    FACET_RETURN_IF_ERROR(RunStep(plan));
    return result_;
  }

  // Profiled operations are waited for, one by one: there is nothing to overlap.
  bool MayBegin(const StepPlan& plan) const {
    return overlap_ && !device_->on() && steps_->under_way() < StepRunner::kUnderWayMax &&
           steps_->MayOverlap(plan);
  }

  absl::Status LeadBegin(const StepPlan& plan) {
    const InStep in_step(this);
    if (options_.world > 1) FACET_RETURN_IF_ERROR(SendPlan(plan, StepForm::kOverlapping));
    return BeginStep(plan);
  }

  absl::StatusOr<StepResult> LeadEnd() {
    const InStep in_step(this);
    FACET_RETURN_IF_ERROR(EndStep());
    return result_;
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

  absl::Status Load() {
    PackedCacheOptions files = options_.packed_cache;
    files.warn = options_.warn;
    PackedCache packed(std::move(files));
    WeightCache cache{.files = &packed, .load_threads = options_.threads, .warn = options_.warn};
    cache.settle = [this](std::span<const std::byte> mapped) { placement_->Move(mapped); };
    // The others of the group wait for the file that one of them packs.
    const unsigned processors = std::max(1u, std::thread::hardware_concurrency());
    cache.pack_threads =
        static_cast<int>(std::min<int64_t>(processors, int64_t{options_.threads} * options_.world));
    FACET_ASSIGN_OR_RETURN(
        weights_,
        LoadWeights(model_, spec_, plan_, options_.rank, device_.get(), options_.screened_head,
                    options_.progress, options_.packed_cache.folder.empty() ? nullptr : &cache));
    return absl::OkStatus();
  }

  absl::Status MakePlacement(const PlacementOptions& options) {
    FACET_ASSIGN_OR_RETURN(placement_, Placement::Make(options, options_.threads));
    return absl::OkStatus();
  }

  absl::Status MakeDevice() {
    std::unique_ptr<Device> device;
    if (options_.make_device) {
      device = options_.make_device();
    } else {
      DeviceChoice choice;
      choice.name = options_.device;
      choice.fast = options_.fast_arithmetic;
      choice.rank = options_.rank;
      choice.threads = options_.threads;
      choice.begin_thread = [this](int thread) { placement_->Bind(thread); };
      choice.rows = std::max(options_.step_tokens_max, kLogitRowsMax);
      choice.sequences = options_.sequences_max;
      choice.context = facts_.context_tokens;
      FACET_ASSIGN_OR_RETURN(ChosenDevice chosen, ChooseDevice(choice));
      device = std::move(chosen.device);
      gpu_bus_id_ = std::move(chosen.gpu_bus_id);
      if (options_.notice) options_.notice(chosen.why);
    }
    device_ = std::make_unique<ProfiledDevice>(std::move(device));
    device_->Enable(options_.profile);
    if (!device_->arithmetic().empty()) facts_.fingerprint += "-" + device_->arithmetic();
    return absl::OkStatus();
  }

  absl::Status AllocateKv() {
    kv_pools_ = forward_->pools();
    const auto full_blocks =
        static_cast<int>((options_.kv_tokens + kBlockTokens - 1) / kBlockTokens);
    for (const LayerSpec& layer : spec_.layers) window_ = std::max(window_, layer.window);
    for (int pool = 0; pool < kKvPools; ++pool) {
      KvPoolSpec& spec = kv_pools_[pool];
      spec.block_tokens = kBlockTokens;
      spec.type = options_.kv_type;
      if (spec.layers > 0)
        spec.blocks = pool == kFullPool ? full_blocks : WindowBlocks(full_blocks);
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

  // Whether any step may overlap another in some epoch.
  bool CanOverlap() const { return options_.overlap.value_or(device_->asynchronous()); }

  int PrefillChunkMax() const {
    if (options_.prefill_chunk_max > 0) return options_.prefill_chunk_max;
    if (!device_->host_memory()) return options_.step_tokens_max;
    return std::min(options_.step_tokens_max, kHostPrefillChunk);
  }

  absl::Status SendPlan(const StepPlan& plan, StepForm form) {
    EncodePlan(plan, form, &message_);
    return communicator_->Broadcast(&message_);
  }

  // As late as the order of the leader's plans allows, so that the device does not wait for it.
  absl::Status FollowStep(const StepPlan& plan, StepForm form) {
    const bool overlapping = form == StepForm::kOverlapping;
    if (overlapping && !CanOverlap()) return Internal("step {} overlaps others", plan.step);
    while (steps_->under_way() > (overlapping ? StepRunner::kUnderWayMax - 1 : 0)) {
      FACET_RETURN_IF_ERROR(EndStep());
    }
    return overlapping ? BeginStep(plan) : RunStep(plan);
  }

  absl::Status RunStep(const StepPlan& plan) {
    placement_->BindCaller();
    const Communicator::Times idle = communicator_->TakeTimes();  // until the plan had come
    const Clock::time_point start = Clock::now();
    FACET_RETURN_IF_ERROR(steps_->Run(plan, communicator_.get(), &result_));
    CountTimes(SecondsSince(start), idle, !plan.segments.empty());
    return absl::OkStatus();
  }

  absl::Status BeginStep(const StepPlan& plan) {
    placement_->BindCaller();
    const Communicator::Times idle = communicator_->TakeTimes();
    const Clock::time_point start = Clock::now();
    FACET_RETURN_IF_ERROR(steps_->Begin(plan, communicator_.get()));
    CountTimes(SecondsSince(start), idle, false);
    return absl::OkStatus();
  }

  absl::Status EndStep() {
    const Clock::time_point start = Clock::now();
    FACET_RETURN_IF_ERROR(steps_->End(&result_));
    CountTimes(SecondsSince(start), {}, true);
    return absl::OkStatus();
  }

  void CountTimes(double total_s, const Communicator::Times& idle, bool computed) {
    const Communicator::Times collective = communicator_->TakeTimes();
    if (computed) {
      ++times_.steps;
      if (device_->on()) times_.profile.Add(ProfileOf(total_s, collective));
    }
    times_.wait_s += idle.wait_s + collective.wait_s;
    times_.collective_s += idle.work_s + collective.work_s;
    times_.compute_s += std::max(0.0, total_s - collective.wait_s - collective.work_s);
    times_.head = device_->head_reads();
    published_.Store(times_);
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
  std::unique_ptr<Placement> placement_;  // outlives the device's threads
  std::unique_ptr<ProfiledDevice> device_;
  Weights weights_;
  std::unique_ptr<Forward> forward_;
  std::optional<StepRunner> steps_;
  std::array<KvPoolSpec, kKvPools> kv_pools_;
  int64_t kv_bytes_ = 0;
  int64_t window_ = 0;
  ModelFacts facts_;
  std::string gpu_bus_id_;
  bool overlap_ = false;            // two steps may be under way, in the epoch that is attached
  std::vector<std::byte> message_;  // the plan as bytes, kept for its memory
  std::mutex abort_mutex_;          // Abort() may come from any thread, also before Attach()
  std::unique_ptr<Communicator> communicator_;
  std::atomic<uint64_t> moved_ = 0;
  std::atomic<bool> in_step_ = false;
  // The thread's that runs steps:
  StepResult result_;  // of the last one, kept for its memory
  StepTimes times_;    // of all
  PublishedTimes published_;
  std::mutex look_mutex_;  // between those who look; no step takes it
  StepTimes seen_;         // at the last look
};

absl::StatusOr<StepResult> GroupExecutor::Run(const StepPlan& plan) {
  return rank_->LeadStep(plan);
}
bool GroupExecutor::MayBegin(const StepPlan& plan) const { return rank_->MayBegin(plan); }
absl::Status GroupExecutor::Begin(const StepPlan& plan) { return rank_->LeadBegin(plan); }
absl::StatusOr<StepResult> GroupExecutor::End() { return rank_->LeadEnd(); }

}  // namespace

absl::StatusOr<std::unique_ptr<Rank>> Rank::Load(const RankOptions& options) {
  FACET_RETURN_IF_ERROR(CheckOptions(options));
  FACET_ASSIGN_OR_RETURN(GgufModel model, GgufModel::Open(options.model_path));
  auto rank = std::make_unique<RankImpl>(options, std::move(model));
  FACET_RETURN_IF_ERROR(rank->Init());
  return rank;
}

}  // namespace facet
