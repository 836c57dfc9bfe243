#ifndef FACET_ROUTER_SERVICE_DISPATCHER_H_
#define FACET_ROUTER_SERVICE_DISPATCHER_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/notification.h"
#include "facet/v1/inference.pb.h"
#include "router/core/router_core.h"
#include "router/service/generation.h"
#include "router/service/leader_names.h"
#include "router/service/leader_pool.h"
#include "router/service/leader_session.h"
#include "router/service/metrics.h"
#include "router/service/serial_thread.h"
#include "router/service/served_model.h"

namespace facet {

struct DispatcherOptions {
  RouterCoreOptions core;
  LeaderNamesOptions leaders;
  ResolveName resolve = ResolveBySystem;
  LeaderSessionOptions session;            // address and digest are filled in
  size_t waiting_tasks_max = 4096;         // submits and queries that have not reached the core
  TimeUs overloaded_retry_us = 1'000'000;  // when to come again if there are more
  TimeUs stall_max_us = 30'000'000;        // a client may leave unread for so long what it was sent
};

// Brings the core to life: one thread feeds it the leaders' events, the clients' requests and the
// time, and carries out what it asks for. Public methods may be called on any thread.
class Dispatcher : private LeaderSession::Listener {
 public:
  // `on_ready` hears on the core's thread whether some group takes requests, when that changes.
  // `give_up_stalled` is told there once a second to end the calls whose clients have not read what
  // was sent `before`, and says how many that were. `queue`: the server's, which the core's thread
  // looks after.
  Dispatcher(DispatcherOptions options, const ServedModel& model, RouterMetrics& metrics,
             std::unique_ptr<grpc::CompletionQueue> queue, std::function<void(bool ready)> on_ready,
             std::function<int(TimeUs before)> give_up_stalled);
  // Ends the leaders' sessions. REQUIRES: no call is left, and the server has gone.
  ~Dispatcher() override;

  // The generation's sink is finished in any case, in the end.
  void Submit(std::shared_ptr<Generation> generation);
  // The client of `sink` has gone. May come before Submit(), which then looks at the sink.
  void Cancel(const ResponseSink* sink);
  // What `sink` held has gone to its client.
  void Resume(const ResponseSink* sink);
  // Runs `answer` on the core's thread with the state of things; false if too much waits.
  bool Query(std::function<void(const v1::GetStatusResponse& status)> answer);
  // Has the groups that are up profile their steps for so long; false if too much waits.
  bool Profile(TimeUs duration);

  // Ends every stream with `status`; their clients resume them elsewhere.
  void Abandon(const absl::Status& status);
  // How long ago the core's thread last took a turn; it does at least once a second.
  std::chrono::milliseconds Age() const;

  // Prompt + output that the groups at hand allow; the model's own while there is none.
  int context_tokens() const { return context_tokens_; }

 private:
  void OnLeaderUp(GroupId group, GroupFacts facts) override;
  void OnLeaderState(GroupId group, const GroupState& state) override;
  void OnLeaderCacheNews(GroupId group, const GroupCacheNews& news) override;
  void OnLeaderDelta(GroupId group, LeaderDelta delta) override;
  void OnLeaderDown(GroupId group) override;
  void OnLeaderClosed(GroupId group) override;

  // Runs `task` on the core's thread with the live request of `sink`, if there is one.
  void PostFor(const ResponseSink* sink, std::function<void(RequestId id)> task);
  // After each batch of events; returns when to be called again.
  TimeUs Turn();
  void Admit(std::shared_ptr<Generation> generation);
  void CarryOut(TimeUs now);
  void SendToLeaders(CoreActions& actions, TimeUs now);
  void Deliver(ChoiceDelta delta, TimeUs now);
  void Follow(const std::shared_ptr<Generation>& generation, RequestId id,
              const Generation::Advice& advice, TimeUs now);
  void Forget(RequestId id);
  void NoteClosed();
  void NoteGroups();
  void Housekeep(TimeUs now);
  v1::GetStatusResponse Status() const;

  const DispatcherOptions options_;
  const ServedModel& model_;
  RouterMetrics& metrics_;
  const std::function<void(bool)> on_ready_;
  const std::function<int(TimeUs)> give_up_stalled_;
  std::atomic<int> context_tokens_;
  std::atomic<TimeUs> last_turn_;

  // The rest belongs to the thread.
  RouterCore core_;
  absl::flat_hash_map<RequestId, std::shared_ptr<Generation>> generations_;
  absl::flat_hash_map<const ResponseSink*, RequestId> requests_of_sinks_;
  std::vector<std::shared_ptr<Generation>> unflushed_;  // within a turn
  bool ready_ = false;
  bool closing_ = false;
  TimeUs housekeep_at_ = 0;
  std::unique_ptr<LeaderPool> leaders_;
  absl::Notification closed_;
  std::unique_ptr<SerialThread> thread_;  // uses the members above
  std::unique_ptr<LeaderNames> names_;    // posts to the thread
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_DISPATCHER_H_
