#ifndef FACET_SHARD_WORKER_SERVICE_ENGINE_LOOP_H_
#define FACET_SHARD_WORKER_SERVICE_ENGINE_LOOP_H_

// The engine thread of a leader for one epoch: carries events and results to the leader's core, its
// plans to the step thread, and its news to the routers' streams. Decides nothing.

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
  const std::optional<CanaryAnswer>& canary_answer() const { return core_.canary_answer(); }

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
    std::deque<StepDone> steps;  // at most steps_max
    bool drain = false;
    std::optional<Break> failure;
  };

  void Add(Event event) ABSL_LOCKS_EXCLUDED(mutex_);
  void AddStep(StepDone done) ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits for something, at most until `until`.
  Incoming Take(TimeUs until) ABSL_LOCKS_EXCLUDED(mutex_);

  // The rest is the engine thread's.
  std::optional<EpochEnd> Turn();
  void Handle(Event& event);
  // An error is the router's fault and ends its stream.
  absl::Status HandleMessage(SessionId session, const v1::RouterMessage& message, TimeUs received);
  void CloseSession(RouterStream* key);
  absl::Status Complete(StepDone& done);
  void PlanSteps();
  void NoteMovement();
  void SendNews();
  void PublishReadiness();
  void SetProfiling(TimeUs until);
  void EndStreams(const absl::Status& status);

  const EngineLoopOptions options_;
  Rank* const rank_;
  WorkerMetrics* const metrics_;
  Pulse* const pulse_;
  const std::function<void(bool)> on_ready_;

  mutable absl::Mutex mutex_;
  Incoming incoming_ ABSL_GUARDED_BY(mutex_);
  int streams_open_ ABSL_GUARDED_BY(mutex_) = 0;  // opened and not closed
  bool wake_ ABSL_GUARDED_BY(mutex_) = false;     // something has come in
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status closed_ ABSL_GUARDED_BY(mutex_);  // Run() is over, and what streams are told
  std::atomic<TimeUs> ready_until_ = 0;

  LeaderCore core_;
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
