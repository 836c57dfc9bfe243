#include "tests/simulation/processes.h"

#include <utility>

namespace facet::sim {
namespace {

constexpr TimeUs kDeathNoticeMost = 250 * kMs;  // the end of a rank's control socket

}  // namespace

SimRouter::SimRouter(Stage* stage, const Scenario& scenario, int number,
                     const std::vector<LeaderPort*>& leaders)
    : stage_(stage),
      scenario_(scenario),
      number_(number),
      leaders_(leaders),
      dice_(scenario.seed, "router supervisor", static_cast<uint64_t>(number)) {
  Start();
}

void SimRouter::Start() {
  process_ = std::make_unique<RouterProcess>(stage_, scenario_, number_, ++lives_, leaders_);
}

void SimRouter::Take(std::shared_ptr<Wire> wire, Call call, Sink sink) {
  if (process_ == nullptr) return wire->Die(WireEnd::kFar);
  process_->Take(std::move(wire), std::move(call), std::move(sink));
}

void SimRouter::Acknowledge(const Wire* wire) {
  if (process_ != nullptr) process_->Acknowledge(wire);
}

void SimRouter::Crash() {
  if (process_ == nullptr) return;
  ++stage_->sights.router_crashes;
  stage_->Note("router {} crashes", number_);
  process_->Die();
  process_.reset();
  stage_->queue.After(dice_.In(scenario_.restart_least, scenario_.restart_most),
                      [this] { Start(); });
}

SimGroup::SimGroup(Stage* stage, const Scenario& scenario, int number)
    : stage_(stage),
      scenario_(scenario),
      number_(number),
      dice_(scenario.seed, "group supervisor", static_cast<uint64_t>(number)) {
  Start();
}

void SimGroup::Start() {
  LeaderProcess::Events events;
  events.on_killed = [this] {
    stage_->Note("a request kills a rank of group {}", number_);
    Freeze(dice_.In(1, kDeathNoticeMost));
  };
  events.on_drained = [this] {
    Later(0, [this] {
      stage_->Note("group {} has drained", number_);
      canary_.reset();
      EndEpoch();
    });
  };
  epoch_began_ = stage_->now();
  process_ = std::make_unique<LeaderProcess>(stage_, scenario_, number_, ++epoch_, canary_,
                                             std::move(events));
}

void SimGroup::Restart() {
  stage_->queue.After(dice_.In(scenario_.restart_least, scenario_.restart_most),
                      [this] { Start(); });
}

void SimGroup::Later(TimeUs delay, std::function<void()> action) {
  stage_->queue.After(delay, [this, epoch = epoch_, action = std::move(action)] {
    if (process_ != nullptr && epoch == epoch_) action();
  });
}

void SimGroup::Open(std::shared_ptr<Wire> wire, int router, Sink sink) {
  if (process_ == nullptr) return wire->Die(WireEnd::kFar);
  stage_->Note("router {} opens a session with group {}", router, number_);
  process_->Open(std::move(wire), std::move(sink));
}

void SimGroup::Take(const Wire* wire, const ToLeader& message) {
  if (process_ != nullptr) process_->Take(wire, message);
}

TimeUs SimGroup::SteadySince() const {
  return process_ == nullptr || process_->hung() ? kNever : epoch_began_;
}

void SimGroup::EndEpoch() {
  stage_->Note("group {} ends epoch {}", number_, epoch_);
  process_->End(/*abrupt=*/false);
  process_.reset();
  Restart();
}

void SimGroup::CrashLeader() {
  if (process_ == nullptr) return;
  ++stage_->sights.leader_crashes;
  stage_->Note("the leader of group {} crashes", number_);
  process_->End(/*abrupt=*/true);
  process_.reset();
  canary_.reset();
  Restart();
}

void SimGroup::Freeze(TimeUs notice) {
  process_->Hang();
  Later(notice, [this] {
    canary_ = process_->canary_answer();
    EndEpoch();
  });
}

void SimGroup::LoseRank() {
  if (process_ == nullptr || process_->hung()) return;
  ++stage_->sights.rank_deaths;
  stage_->Note("a rank of group {} dies", number_);
  Freeze(dice_.In(1, kDeathNoticeMost));
}

void SimGroup::Hang() {
  if (process_ == nullptr || process_->hung()) return;
  ++stage_->sights.hangs;
  stage_->Note("a rank of group {} hangs", number_);
  Freeze(scenario_.hang_notice);
}

void SimGroup::SlowDown(TimeUs until) {
  if (process_ == nullptr) return;
  ++stage_->sights.slow_ranks;
  stage_->Note("a rank of group {} is slow for {} ms", number_, (until - stage_->now()) / kMs);
  process_->SlowDown(until);
}

void SimGroup::Drain() {
  if (process_ == nullptr || process_->hung()) return;
  ++stage_->sights.drains;
  stage_->Note("group {} drains", number_);
  process_->Drain();
}

}  // namespace facet::sim
