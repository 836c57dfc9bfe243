#include "tests/services/fake_rank.h"

#include <cmath>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "tests/base/patience.h"

namespace facet::testing {
namespace {

constexpr uint64_t kStop = ~uint64_t{0};

std::vector<std::byte> Encode(uint64_t step) {
  std::vector<std::byte> message(sizeof step);
  std::memcpy(message.data(), &step, sizeof step);
  return message;
}

uint64_t Decode(const std::vector<std::byte>& message) {
  uint64_t step;
  FACET_CHECK(message.size() == sizeof step);
  std::memcpy(&step, message.data(), sizeof step);
  return step;
}

}  // namespace

void StepGate::Allow(int steps) {
  const std::lock_guard lock(mutex_);
  permits_ = permits_.value_or(0) + steps;
  changed_.notify_all();
}

void StepGate::Open() {
  const std::lock_guard lock(mutex_);
  permits_.reset();
  changed_.notify_all();
}

void StepGate::Pass() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !permits_ || *permits_ > 0; });
  if (permits_) --*permits_;
}

class FakeRank::GroupExecutor : public Executor {
 public:
  explicit GroupExecutor(FakeRank* rank) : rank_(rank) {}

  absl::StatusOr<StepResult> Run(const StepPlan& plan) override {
    if (!plan.segments.empty() && rank_->options_.gate) rank_->options_.gate->Pass();
    std::vector<std::byte> message = Encode(plan.step);
    FACET_RETURN_IF_ERROR(rank_->communicator_->Broadcast(&message));
    FACET_RETURN_IF_ERROR(rank_->Meet(plan.step));
    absl::StatusOr<StepResult> result = rank_->executor_->Run(plan);
    if (rank_->options_.lies == nullptr || !*rank_->options_.lies) return result;
    for (SegmentResult& segment : result->segments) {
      for (ScoredToken& token : segment.sampled) {
        token.logprob = std::nextafter(token.logprob, 1.0f);
      }
    }
    return result;
  }

  bool MayBegin(const StepPlan& plan) const override {
    return rank_->options_.overlapped != nullptr && !plan.segments.empty() && under_way_.size() < 2;
  }
  absl::Status Begin(const StepPlan& plan) override {
    FACET_ASSIGN_OR_RETURN(StepResult result, Run(plan));
    under_way_.push_back(std::move(result));
    if (under_way_.size() == 2) ++*rank_->options_.overlapped;
    return absl::OkStatus();
  }
  absl::StatusOr<StepResult> End() override {
    StepResult result = std::move(under_way_.front());
    under_way_.pop_front();
    return result;
  }

 private:
  FakeRank* const rank_;
  std::deque<StepResult> under_way_;
};

FakeRank::FakeRank(const FakeRankOptions& options)
    : options_(options), breaks_at_(options.breaks_at) {
  facts_.architecture = "fake";
  facts_.description = "A fake model";
  facts_.parameters = 123;
  facts_.context_tokens = options.engine.context_tokens;
  facts_.vocabulary_size = options.engine.vocabulary_size;
  facts_.digest = options.digest;
  facts_.fingerprint = "fake-1";
}

void FakeRank::Attach(std::unique_ptr<Communicator> communicator) {
  FACET_CHECK(communicator->rank() == options_.rank && communicator->world() == options_.world);
  communicator->SetTimeout(kLong);
  executor_.emplace(options_.engine);
  const std::lock_guard lock(mutex_);
  FACET_CHECK(communicator_ == nullptr);
  communicator_ = std::move(communicator);
}

void FakeRank::Detach() {
  const std::lock_guard lock(mutex_);
  communicator_.reset();
}

std::unique_ptr<Executor> FakeRank::MakeExecutor() { return std::make_unique<GroupExecutor>(this); }

absl::Status FakeRank::Meet(uint64_t step) {
  ++moved_;
  in_step_ = true;
  const absl::Status status = Compute(step);
  in_step_ = false;
  return status;
}

absl::Status FakeRank::Compute(uint64_t step) {
  communicator_->SetStep(step);
  if (options_.stuck != nullptr) options_.stuck->Pass();
  if (breaks_at_ == step) {
    breaks_at_.reset();
    return Internal("rank {} broke", options_.rank);
  }
  return communicator_->Barrier();
}

absl::Status FakeRank::Follow() {
  while (true) {
    std::vector<std::byte> message;
    FACET_RETURN_IF_ERROR(communicator_->Broadcast(&message));
    const uint64_t step = Decode(message);
    if (step == kStop) return absl::OkStatus();
    FACET_RETURN_IF_ERROR(Meet(step));
  }
}

absl::Status FakeRank::StopFollowers() {
  std::vector<std::byte> message = Encode(kStop);
  return communicator_->Broadcast(&message);
}

StepTimes FakeRank::TakeTimes() {
  StepTimes times{1, 0.5, 0.25, 0.125};
  if (!profiled_) return times;
  times.profile.steps = 1;
  times.profile.rows = 2;
  times.profile.seconds = 0.875;
  times.profile[StepOperation::kHead] = {3, 0.5, 1e6, 2e6};
  return times;
}

void FakeRank::Abort() {
  const std::lock_guard lock(mutex_);
  if (communicator_ != nullptr) communicator_->Abort();
}

}  // namespace facet::testing
