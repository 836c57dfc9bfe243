#include "tests/runtime/in_process_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/local.h"

namespace facet::testing {
namespace {

// Between a test's runs nobody keeps the followers awake with empty plans.
constexpr std::chrono::minutes kIdleMax{9};

}  // namespace

std::vector<TokenId> Output::ids() const {
  std::vector<TokenId> ids;
  for (const ScoredToken& token : tokens) ids.push_back(token.id);
  return ids;
}

absl::StatusOr<std::unique_ptr<InProcessGroup>> InProcessGroup::Start(const GroupOptions& options) {
  std::unique_ptr<InProcessGroup> group(new InProcessGroup);
  std::vector<std::unique_ptr<Communicator>> communicators = MakeLocalGroup(options.world);
  for (int rank = 0; rank < options.world; ++rank) {
    RankOptions rank_options = options.rank;
    rank_options.rank = rank;
    rank_options.world = options.world;
    rank_options.step_timeout = kIdleMax;
    FACET_ASSIGN_OR_RETURN(std::unique_ptr<Rank> loaded, Rank::Load(rank_options));
    group->ranks_.push_back(std::move(loaded));
  }
  FACET_RETURN_IF_ERROR(group->Attach(std::move(communicators)));
  group->options_ = options;
  group->StartFollowers();
  group->BeginEpoch();
  return group;
}

void InProcessGroup::StartFollowers() {
  for (size_t rank = 1; rank < ranks_.size(); ++rank) {
    followers_.emplace_back([this, follower = ranks_[rank].get()] {
      const absl::Status status = follower->Follow();
      FACET_CHECK(status.ok() || breaking_off_, "{}", MessageOf(status));
    });
  }
}

void InProcessGroup::BeginEpoch() {
  executor_ = ranks_[0]->MakeExecutor();
  EngineOptions engine = ranks_[0]->engine_options();
  engine.steps_max = options_.steps_max;
  engine.prefix_cache = options_.prefix_cache;
  engine.speculation = options_.speculation;
  engine_ = std::make_unique<Engine>(engine);
  plans_.clear();
  begun_ = 0;
}

void InProcessGroup::BreakOff() {
  breaking_off_ = true;
  ranks_[0]->Abort();
  for (std::thread& follower : followers_) follower.join();
  followers_.clear();
  breaking_off_ = false;
  for (const std::unique_ptr<Rank>& rank : ranks_) rank->Detach();
  const absl::Status status = Attach(MakeLocalGroup(options_.world));
  FACET_CHECK(status.ok(), "{}", MessageOf(status));
  StartFollowers();
  BeginEpoch();
}

// Devices with collectives of their own join each other, all at once.
absl::Status InProcessGroup::Attach(std::vector<std::unique_ptr<Communicator>> communicators) {
  std::vector<absl::Status> statuses(ranks_.size());
  std::vector<std::thread> joining;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    joining.emplace_back([&, i] {
      absl::StatusOr<std::unique_ptr<Communicator>> communicator = std::move(communicators[i]);
      DeviceCollectives* const device = ranks_[i]->collectives();
      if (device != nullptr) communicator = device->Join(*std::move(communicator));
      statuses[i] = communicator.status();
      if (communicator.ok()) ranks_[i]->Attach(*std::move(communicator));
    });
  }
  for (std::thread& thread : joining) thread.join();
  for (const absl::Status& status : statuses) FACET_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

InProcessGroup::~InProcessGroup() {
  if (!followers_.empty()) FACET_CHECK(ranks_[0]->StopFollowers().ok());
  for (std::thread& follower : followers_) follower.join();
}

std::vector<uint64_t> InProcessGroup::Submit(std::vector<EngineRequest> requests) {
  std::vector<uint64_t> seeds;
  for (EngineRequest& request : requests) {
    request.id = SequenceId{next_id_++};
    seeds.push_back(request.seed);
    const absl::Status status = engine_->Submit(std::move(request), 0);
    FACET_CHECK(status.ok(), "{}", MessageOf(status));
  }
  return seeds;
}

void InProcessGroup::RunSteps(std::vector<EngineRequest> requests, int steps) {
  std::vector<Output> outputs(requests.size());
  const std::vector<uint64_t> seeds = Submit(std::move(requests));
  for (int i = 0; i < steps; ++i) Step(seeds, &outputs);
}

std::vector<Output> InProcessGroup::Run(std::vector<EngineRequest> requests,
                                        const std::map<size_t, int>& cancel_at) {
  const uint64_t first_id = next_id_;
  std::vector<Output> outputs(requests.size());
  size_t open = requests.size();
  const std::vector<uint64_t> seeds = Submit(std::move(requests));
  while (open > 0 || engine_->outstanding() > 0) {
    Step(seeds, &outputs);
    for (EngineDelta& delta : engine_->TakeDeltas()) {
      Output& output = outputs[delta.id.value - first_id];
      FACET_CHECK(delta.offset == static_cast<int>(output.tokens.size()));
      for (ScoredToken& token : delta.tokens) output.tokens.push_back(std::move(token));
      for (ScoredToken& token : delta.prompt) output.prompt.push_back(std::move(token));
      const auto cancel = cancel_at.find(delta.id.value - first_id);
      if (cancel != cancel_at.end() && static_cast<int>(output.tokens.size()) >= cancel->second) {
        engine_->Cancel(delta.id, 0);
      }
      if (!delta.finish) continue;
      output.finish = *delta.finish;
      output.error = delta.error;
      output.logits_sha256 = Hex(delta.logits_sha256);
      output.cached_tokens = delta.cached_tokens;
      --open;
    }
  }
  return outputs;
}

void InProcessGroup::Step(const std::vector<uint64_t>& seeds, std::vector<Output>* outputs) {
  while (engine_->outstanding() < options_.steps_max) {
    std::optional<StepPlan> plan = engine_->Plan(0);
    if (!plan) break;
    for (const SequenceStart& start : plan->starts) {
      const auto index = std::find(seeds.begin(), seeds.end(), start.seed) - seeds.begin();
      Output& output = (*outputs)[static_cast<size_t>(index)];
      output.starts.push_back(static_cast<int>(output.tokens.size()));
    }
    plans_.push_back(std::move(*plan));
  }
  FACET_CHECK(!plans_.empty(), "requests are open and the engine has no plan");
  for (; begun_ < plans_.size() && executor_->MayBegin(plans_[begun_]); ++begun_) {
    const absl::Status status = executor_->Begin(plans_[begun_]);
    FACET_CHECK(status.ok(), "{}", MessageOf(status));
    if (begun_ > 0) ++overlapped_;
  }
  absl::StatusOr<StepResult> result =
      begun_ > 0 ? executor_->End() : executor_->Run(plans_.front());
  FACET_CHECK(result.ok(), "{}", MessageOf(result.status()));
  if (begun_ > 0) --begun_;
  plans_.pop_front();
  engine_->Complete(*result, 0);
  FACET_CHECK(engine_->Check().ok(), "{}", MessageOf(engine_->Check()));
}

EngineRequest GreedyRequest(std::vector<TokenId> prompt, int max_tokens) {
  EngineRequest request;
  request.prompt_length = static_cast<int>(prompt.size());
  request.tokens = std::move(prompt);
  request.sampling.temperature = 0;
  request.max_tokens = max_tokens;
  request.logits_digest = true;
  return request;
}

std::string Hex(const std::string& bytes) {
  std::string hex;
  for (const char byte : bytes) hex += fmt::format("{:02x}", static_cast<uint8_t>(byte));
  return hex;
}

}  // namespace facet::testing
