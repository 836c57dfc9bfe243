#ifndef FACET_SHARD_WORKER_SERVICE_ENGINE_LOOP_H_
#define FACET_SHARD_WORKER_SERVICE_ENGINE_LOOP_H_

// The engine thread of a leader: owns the engine, drives the executor, and carries messages
// between them and the routers' streams.

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "facet/v1/shard.pb.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/runtime/executor.h"
#include "shard_worker/runtime/rank.h"
#include "shard_worker/service/router_stream.h"
#include "shard_worker/service/worker_metrics.h"

namespace facet {

struct EngineLoopOptions {
  EngineOptions engine;
  v1::ModelInfo model;  // its context is replaced by what the engine can hold
  int ranks = 1;
  std::string device;
  bool allow_logits_digest = false;
  int streams_max = 64;  // routers at a time
  std::chrono::milliseconds drain{30000};
  std::chrono::milliseconds keep_alive{500};     // an idle group runs an empty plan this often
  std::chrono::milliseconds state_period{1000};  // a silent stream gets the state this often
};

class EngineLoop {
 public:
  // Borrows `executor` and `metrics`. `take_times`: seconds of the executor's steps since the last
  // call, for the metrics.
  EngineLoop(const EngineLoopOptions& options, Executor* executor,
             std::function<StepTimes()> take_times, WorkerMetrics* metrics);
  ~EngineLoop();

  // The thread that calls this becomes the engine thread. Returns OK once Drain() was called and
  // the last sequence has ended or the drain time has passed; an error if the group broke. All
  // streams have been told to end then, and later ones end at once.
  absl::Status Run();

  // --- Any thread. These return at once.

  // A router has come; it gets the first state. ResourceExhausted or Unavailable: refused.
  absl::Status Open(std::shared_ptr<RouterStream> stream);
  // A message of `bytes`. The stream bounds what it posts by Taken(). REQUIRES: it is open.
  void Post(std::shared_ptr<RouterStream> stream, v1::RouterMessage message, int64_t bytes);
  // The stream has ended; so do its sequences. Repeating is harmless.
  void Close(std::shared_ptr<RouterStream> stream);
  // No new sequences from now on.
  void Drain();
  // The group has broken: Run() returns `status`.
  void Fail(const absl::Status& status);

 private:
  struct Event {
    enum Kind { kOpen, kMessage, kClose } kind;
    std::shared_ptr<RouterStream> stream;
    v1::RouterMessage message;
    TimeUs received = 0;
    int64_t bytes = 0;
  };
  struct Stream {
    std::shared_ptr<RouterStream> stream;
    std::unordered_map<uint64_t, SequenceId> sequences;  // by the router's number
    int64_t submits_received = 0;
    v1::LeaderMessage outgoing;  // filled between two flushes
    TimeUs last_sent = 0;
  };
  struct Running {
    Stream* stream;
    uint64_t number;  // the router's
  };

  // Waits for an event, at most until `until`, and takes all there are.
  std::deque<Event> TakeEvents(TimeUs until) ABSL_LOCKS_EXCLUDED(mutex_);

  absl::Status Failure() const ABSL_LOCKS_EXCLUDED(mutex_);

  // The rest is the engine thread's.
  absl::Status Turn();
  absl::Status RunPlan(const StepPlan& plan);
  TimeUs IdleUntil() const;
  bool Finished(TimeUs now);
  void Handle(Event& event);
  // An error is the router's fault and ends its stream.
  absl::Status HandleMessage(Stream* stream, const v1::RouterMessage& message, TimeUs received);
  absl::Status Submit(Stream* stream, const v1::Submit& submit, TimeUs received);
  void CloseStream(RouterStream* key);
  void CollectDeltas();
  void Flush(TimeUs now);
  void SetState(const Stream& stream, v1::LeaderState* state) const;
  int64_t Credit() const;
  void EndStreams(const absl::Status& status);

  const EngineLoopOptions options_;
  Executor* const executor_;
  const std::function<StepTimes()> take_times_;
  WorkerMetrics* const metrics_;

  mutable absl::Mutex mutex_;
  std::deque<Event> events_ ABSL_GUARDED_BY(mutex_);
  int streams_open_ ABSL_GUARDED_BY(mutex_) = 0;  // opened and not closed
  bool wake_ ABSL_GUARDED_BY(mutex_) = false;     // something below or above has changed
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;   // Run() is over
  bool drain_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);

  Engine engine_;
  EngineStats stats_;  // after the last turn
  std::unordered_map<RouterStream*, Stream> streams_;
  std::unordered_map<SequenceId, Running> running_;
  uint64_t next_sequence_ = 1;
  std::optional<TimeUs> drain_until_;  // while draining
  bool drain_announced_ = false;
  bool busy_ = false;  // the last turn computed something
  TimeUs last_plan_ = 0;
};

// Microseconds of the steady clock.
TimeUs SteadyNow();

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_ENGINE_LOOP_H_
