#ifndef FACET_TESTS_SIMULATION_LEADER_PROCESS_H_
#define FACET_TESTS_SIMULATION_LEADER_PROCESS_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "shard_worker/runtime/fake_executor.h"
#include "tests/simulation/dice.h"
#include "tests/simulation/messages.h"
#include "tests/simulation/plan_auditor.h"
#include "tests/simulation/scenario.h"
#include "tests/simulation/stage.h"
#include "tests/simulation/wire.h"

namespace facet::sim {

// One epoch of a group: the production LeaderCore with its engine, and the fake executor behind a
// queue of steps that take virtual time, as behind the leader's step thread. Judges every plan, the
// core's invariants after every event, how soon cancels and deadlines take effect, and readiness.
class LeaderProcess {
 public:
  struct Events {
    std::function<void()> on_killed;   // a request has killed a rank
    std::function<void()> on_drained;  // the process would exit now
  };
  LeaderProcess(Stage* stage, const Scenario& scenario, int group, uint64_t epoch,
                std::optional<CanaryAnswer> canary, Events events);

  void Open(std::shared_ptr<Wire> wire, LeaderPort::Sink sink);
  void Take(const Wire* wire, const ToLeader& message);
  void Drain();

  // The step under way, or the next one, never ends.
  void Hang();
  // Steps take ten times as long until then.
  void SlowDown(TimeUs until) { slow_until_ = until; }
  // Ends the sessions: `abrupt` if the process has died, else after their last news.
  void End(bool abrupt);

  const std::optional<CanaryAnswer>& canary_answer() const { return core_.canary_answer(); }
  bool hung() const { return hung_; }
  // Nothing runs, and every block is free or cached.
  void CheckIdle();
  // The prefixes that a new session would hear of; nothing if the old ones may not have heard of
  // all of them yet. The process is of no use after that.
  std::optional<std::set<uint64_t>> TakeLinks();

 private:
  struct Session {
    SessionId id;
    std::shared_ptr<Wire> wire;
    LeaderPort::Sink sink;
  };
  // A sequence that must end soon, by session and number: its last news must come before the
  // second step from then on is over.
  struct Doomed {
    TimeUs from = 0;     // its deadline, or when it was cancelled
    int64_t steps = -1;  // completed when that had come; -1: it has not yet
  };
  using Key = std::pair<SessionId, uint64_t>;

  void Turn();
  void Issue(StepPlan plan);
  void StartStep();
  void CompleteStep();
  void SendNews();
  void CountEngine();
  void CheckAll();
  void CheckDoomed();
  void CheckReadiness();
  TimeUs Duration(const StepPlan& plan);

  Stage* const stage_;
  const Scenario& scenario_;
  const GroupPlan& plan_;
  const std::string name_;
  const Events events_;
  Dice dice_;
  LeaderCore core_;
  FakeExecutor executor_;
  PlanAuditor auditor_;
  Alarm wake_, step_;
  std::deque<StepPlan> steps_;  // outstanding; the first is under way
  std::map<const Wire*, Session> sessions_;
  std::map<SessionId, const Wire*> wires_;
  std::set<Key> live_;  // taken in, and no last news yet
  std::map<Key, Doomed> doomed_;
  std::set<uint64_t> killers_;  // seeds of the sequences that kill a rank
  uint64_t last_session_ = 0;
  int64_t steps_done_ = 0;
  TimeUs cache_changed_at_ = 0;  // at the latest: a step that computes was planned or done
  TimeUs slow_until_ = 0;
  TimeUs hung_at_ = kNever;
  bool hung_ = false;
  bool proven_ = false;  // has been ready
  bool over_ = false;
};

}  // namespace facet::sim

#endif  // FACET_TESTS_SIMULATION_LEADER_PROCESS_H_
