#include "shard_worker/service/step_pipeline.h"

#include <pthread.h>

#include <chrono>
#include <utility>

namespace facet {
namespace {

int64_t RowsOf(const StepPlan& plan) {
  int64_t rows = 0;
  for (const Segment& segment : plan.segments) rows += static_cast<int64_t>(segment.tokens.size());
  return rows;
}

}  // namespace

StepPipeline::StepPipeline(Executor* executor, std::function<void(StepDone)> on_done)
    : executor_(executor), on_done_(std::move(on_done)), thread_([this] { Run(); }) {}

StepPipeline::~StepPipeline() { Stop(); }

void StepPipeline::Stop() {
  {
    const absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void StepPipeline::Push(StepPlan plan) {
  const absl::MutexLock lock(&mutex_);
  plans_.push_back(std::move(plan));
}

void StepPipeline::Run() {
  pthread_setname_np(pthread_self(), "step");
  for (bool ok = true; ok;) {
    const std::optional<StepPlan> plan = Next();
    if (stopped()) return;
    if (begun_.empty()) began_ = Clock::now();
    if (!plan) {
      const int64_t rows = begun_.front().rows;
      ok = Tell(EndOldest(), rows);
    } else if (executor_->MayBegin(*plan)) {
      begun_.push_back({executor_->Begin(*plan), RowsOf(*plan)});
    } else {
      ok = Tell(executor_->Run(*plan), RowsOf(*plan));
    }
  }
}

std::optional<StepPlan> StepPipeline::Next() {
  const auto wanted = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stop_ || !plans_.empty();
  };
  const absl::MutexLock lock(&mutex_);
  if (begun_.empty()) mutex_.Await(absl::Condition(&wanted));
  // After one that could not begin nothing does.
  const bool fits = begun_.empty() || (begun_.back().status.ok() && !plans_.empty() &&
                                       executor_->MayBegin(plans_.front()));
  if (stop_ || !fits) return std::nullopt;
  StepPlan plan = std::move(plans_.front());
  plans_.pop_front();
  return plan;
}

bool StepPipeline::stopped() {
  const absl::MutexLock lock(&mutex_);
  return stop_;
}

absl::StatusOr<StepResult> StepPipeline::EndOldest() {
  const absl::Status status = std::move(begun_.front().status);
  begun_.pop_front();
  if (!status.ok()) return status;
  return executor_->End();
}

bool StepPipeline::Tell(absl::StatusOr<StepResult> result, int64_t rows) {
  StepDone done{std::move(result)};
  const Clock::time_point now = Clock::now();
  done.seconds = std::chrono::duration<double>(now - std::exchange(began_, now)).count();
  done.rows = rows;
  {
    const absl::MutexLock lock(&mutex_);
    done.last = plans_.empty();
  }
  const bool ok = done.result.ok();
  on_done_(std::move(done));
  return ok;
}

}  // namespace facet
