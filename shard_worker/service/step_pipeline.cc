#include "shard_worker/service/step_pipeline.h"

#include <pthread.h>

#include <chrono>
#include <utility>

namespace facet {

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
  const auto wanted = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stop_ || !plans_.empty();
  };
  for (bool failed = false; !failed;) {
    StepPlan plan;
    {
      const absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&wanted));
      if (stop_) return;
      plan = std::move(plans_.front());
      plans_.pop_front();
    }
    const auto start = std::chrono::steady_clock::now();
    StepDone done{executor_->Run(plan)};
    done.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    for (const Segment& segment : plan.segments) {
      done.rows += static_cast<int64_t>(segment.tokens.size());
    }
    failed = !done.result.ok();
    {
      const absl::MutexLock lock(&mutex_);
      done.last = plans_.empty();
    }
    on_done_(std::move(done));
  }
}

}  // namespace facet
