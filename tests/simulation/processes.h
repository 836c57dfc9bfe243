#ifndef FACET_TESTS_SIMULATION_PROCESSES_H_
#define FACET_TESTS_SIMULATION_PROCESSES_H_

// What outlives the processes: addresses that clients and routers connect to, and somebody who
// starts anew what died.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/simulation/leader_process.h"
#include "tests/simulation/messages.h"
#include "tests/simulation/router_process.h"

namespace facet::sim {

class SimRouter : public RouterPort {
 public:
  SimRouter(Stage* stage, const Scenario& scenario, int number,
            const std::vector<LeaderPort*>& leaders);

  void Take(std::shared_ptr<Wire> wire, Call call, Sink sink) override;
  void Acknowledge(const Wire* wire) override;

  void Crash();
  RouterProcess* process() { return process_.get(); }

 private:
  void Start();

  Stage* const stage_;
  const Scenario& scenario_;
  const int number_;
  const std::vector<LeaderPort*>& leaders_;
  Dice dice_;
  int lives_ = 0;
  std::unique_ptr<RouterProcess> process_;  // null: dead
};

// A group of ranks. Its leader ends an epoch when a rank is lost or hangs, and serves a new one
// when the ranks are back, with empty KV; when the leader itself dies, so does what it remembered.
class SimGroup : public LeaderPort {
 public:
  SimGroup(Stage* stage, const Scenario& scenario, int number);

  void Open(std::shared_ptr<Wire> wire, int router, Sink sink) override;
  void Take(const Wire* wire, const ToLeader& message) override;
  TimeUs SteadySince() const override;

  void CrashLeader();
  // A rank other than the leader dies; the leader hears of it at once, or nearly.
  void LoseRank();
  // A rank stops in the middle of a step; its silence is noticed.
  void Hang();
  void SlowDown(TimeUs until);
  void Drain();
  LeaderProcess* process() { return process_.get(); }

 private:
  void Start();
  void Restart();
  // Nothing moves any more; the leader ends the epoch after `notice`.
  void Freeze(TimeUs notice);
  void EndEpoch();
  // Runs after the event under way, unless the epoch is over by then.
  void Later(TimeUs delay, std::function<void()> action);

  Stage* const stage_;
  const Scenario& scenario_;
  const int number_;
  Dice dice_;
  uint64_t epoch_ = 0;
  TimeUs epoch_began_ = 0;
  std::optional<CanaryAnswer> canary_;
  std::unique_ptr<LeaderProcess> process_;  // null: no epoch
};

}  // namespace facet::sim

#endif  // FACET_TESTS_SIMULATION_PROCESSES_H_
