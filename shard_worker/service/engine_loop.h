#ifndef FACET_SHARD_WORKER_SERVICE_ENGINE_LOOP_H_
#define FACET_SHARD_WORKER_SERVICE_ENGINE_LOOP_H_

// The engine of a leader for one epoch. The engine thread carries events to the leader's core and
// its news to the routers' streams. The step thread, when no plan is left for it, tells the core
// what its step came to and takes the next plan along, so that nobody has to be woken between two
// steps: what the first one sampled is delivered while the second one runs. Decides nothing.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "facet/v1/shard.pb.h"
#include "serving/pulse.h"
#include "shard_worker/engine/leader_core.h"
#include "shard_worker/runtime/rank.h"
#include "shard_worker/service/clock.h"
#include "shard_worker/service/peer_watch.h"
#include "shard_worker/service/router_stream.h"
#include "shard_worker/service/step_pipeline.h"
#include "shard_worker/service/worker_metrics.h"

namespace facet {

struct EngineLoopOptions {
  LeaderCoreOptions core;
  v1::ModelInfo model;  // its context is replaced by what the engine can hold
  int ranks = 1;
  std::string device;
  int streams_max = 64;       // routers at a time
  TimeUs wait_max = 250'000;  // the engine thread shows that it lives at least this often
  bool profile = false;       // steps are profiled anyhow, not only when a router asks
};

// How an epoch ended.
struct EpochEnd {
  absl::Status status;                         // OK: drained
  BreakCause cause = BreakCause::kStepFailed;  // if it broke
  bool condemned = false;                      // it broke because the group computes wrong tokens
};

class EngineLoop {
 public:
  // Borrows `rank`, `metrics` and `pulse`, which must outlive Run(). `canary`: see LeaderCore.
  // `on_ready`: called on the engine thread when ready_until() is set for the first time, and with
  // false at the end, before anything waits.
  EngineLoop(const EngineLoopOptions& options, std::optional<CanaryAnswer> canary, Rank* rank,
             WorkerMetrics* metrics, Pulse* pulse, std::function<void(bool)> on_ready);
  ~EngineLoop();

  // The thread that calls this becomes the engine thread. Returns once Drain() was called and the
  // last sequence has ended or the drain time has passed, or once the group has broken. All
  // streams have been told to end then, later ones end at once, and no step runs.
  EpochEnd Run();

  // After Run(): what the next epoch's canaries must answer.
  std::optional<CanaryAnswer> canary_answer() const ABSL_LOCKS_EXCLUDED(core_mutex_) {
    const absl::MutexLock lock(&core_mutex_);
    return core_.canary_answer();
  }

  // --- Any thread. These return at once.

  // A router has come; it gets the first state. ResourceExhausted or Unavailable: refused.
  absl::Status Open(std::shared_ptr<RouterStream> stream);
  // A message of `bytes`. The stream bounds what it posts by Taken(). REQUIRES: it is open.
  void Post(std::shared_ptr<RouterStream> stream, v1::RouterMessage message, int64_t bytes);
  // The stream has ended; so do its sequences. Repeating is harmless.
  void Close(std::shared_ptr<RouterStream> stream);
  // No new sequences from now on.
  void Drain();
  // The group has broken. The first one counts.
  void Fail(const Break& failure);
  // See LeaderCore::ready_until(); 0 while draining and after the end.
  TimeUs ready_until() const { return ready_until_; }

 private:
  struct Event {
    enum Kind { kOpen, kMessage, kClose } kind;
    std::shared_ptr<RouterStream> stream;
    v1::RouterMessage message;
    TimeUs received = 0;
    int64_t bytes = 0;
  };
  // What has come in since the last look.
  struct Incoming {
    std::deque<Event> events;
    absl::Status step;  // not OK: one has failed
    bool drain = false;
    std::optional<Break> failure;
  };
  // What the core says after the latest events and steps.
  struct Look {
    absl::Status verdict;
    LeaderStats stats;
    std::vector<SessionNews> news;
    TimeUs ready_until = 0;
    bool drained = false;
  };

  void Add(Event event) ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits for something, at most until `until`.
  Incoming Take(TimeUs until) ABSL_LOCKS_EXCLUDED(mutex_);

  // On the step thread, after each step.
  void OnStep(StepDone done) ABSL_LOCKS_EXCLUDED(mutex_, core_mutex_);
  // Tells the core of the steps that have come to an end, in their order.
  void CompleteSteps() ABSL_LOCKS_EXCLUDED(mutex_) ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_mutex_);
  // Whether the engine thread must look at what the step has changed.
  bool EngineIsWanted() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_mutex_);
  // Gives the step thread what the core wants computed next.
  void PlanSteps() ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_mutex_);

  // The rest is the engine thread's.
  std::optional<EpochEnd> Turn();
  TimeUs NextWake() const ABSL_LOCKS_EXCLUDED(core_mutex_);
  void Handle(Event& event) ABSL_LOCKS_EXCLUDED(core_mutex_);
  // An error is the router's fault and ends its stream.
  absl::Status HandleMessage(SessionId session, const v1::RouterMessage& message, TimeUs received)
      ABSL_LOCKS_EXCLUDED(core_mutex_);
  void CloseSession(RouterStream* key) ABSL_LOCKS_EXCLUDED(mutex_, core_mutex_);
  Look LookAtCore(bool drain) ABSL_LOCKS_EXCLUDED(core_mutex_);
  void AddTimes();
  void Send(std::vector<SessionNews> news);
  void PublishReadiness(TimeUs until) ABSL_LOCKS_EXCLUDED(mutex_);
  void SetProfiling(TimeUs until);
  void EndStreams(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_, core_mutex_);

  const EngineLoopOptions options_;
  Rank* const rank_;
  WorkerMetrics* const metrics_;
  Pulse* const pulse_;
  const std::function<void(bool)> on_ready_;

  mutable absl::Mutex mutex_;
  Incoming incoming_ ABSL_GUARDED_BY(mutex_);
  std::deque<StepResult> results_ ABSL_GUARDED_BY(mutex_);  // at most steps_max, not completed
  int streams_open_ ABSL_GUARDED_BY(mutex_) = 0;            // opened and not closed
  bool wake_ ABSL_GUARDED_BY(mutex_) = false;               // something has come in
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status closed_ ABSL_GUARDED_BY(mutex_);  // Run() is over, and what streams are told
  std::atomic<TimeUs> ready_until_ = 0;

  // Held for moments: a step waits for it. Never while gRPC or anything that waits is called.
  mutable absl::Mutex core_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);
  LeaderCore core_ ABSL_GUARDED_BY(core_mutex_);
  const int context_tokens_;  // the core's

  std::map<SessionId, std::shared_ptr<RouterStream>> streams_;
  std::unordered_map<RouterStream*, SessionId> sessions_;
  uint64_t next_session_ = 1;
  uint64_t moved_ = 0;        // the rank's progress at the last look
  TimeUs profile_until_ = 0;  // 0: routers asked for no profile
  StepProfile profile_;       // of the epoch
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<StepPipeline> pipeline_;  // while Run() runs
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_ENGINE_LOOP_H_
