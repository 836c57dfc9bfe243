#include "tests/simulation/leader_process.h"

#include <algorithm>

#include "base/status.h"

namespace facet::sim {
namespace {

constexpr int kSlowness = 10;
constexpr int64_t kStepsToEnd = 2;  // after a cancel or a deadline
constexpr TimeUs kTold = kSecond;   // by then all sessions have heard of a change in the cache

}  // namespace

LeaderProcess::LeaderProcess(Stage* stage, const Scenario& scenario, int group, uint64_t epoch,
                             std::optional<CanaryAnswer> canary, Events events)
    : stage_(stage),
      scenario_(scenario),
      plan_(scenario.groups[static_cast<size_t>(group)]),
      name_(fmt::format("group {} epoch {}", group, epoch)),
      events_(std::move(events)),
      dice_(scenario.seed, name_),
      core_(
          [&] {
            LeaderCoreOptions options = plan_.leader;
            options.epoch = epoch;
            return options;
          }(),
          std::move(canary), stage->now()),
      executor_(plan_.leader.engine, scenario.poison),
      auditor_(plan_.leader.engine),
      wake_(&stage->queue, [this] { Turn(); }),
      step_(&stage->queue, [this] { CompleteStep(); }) {
  for (const RequestPlan& request : scenario.requests) {
    if (!request.kills_groups) continue;
    for (uint32_t prompt = 0; prompt < request.prompts.size(); ++prompt) {
      for (uint32_t choice = 0; choice < static_cast<uint32_t>(request.n); ++choice) {
        killers_.insert(SequenceSeed(request.seed, prompt, choice));
      }
    }
  }
  ++stage_->sights.epochs;
  wake_.Set(stage->now());
}

// --- Routers.

void LeaderProcess::Open(std::shared_ptr<Wire> wire, LeaderPort::Sink sink) {
  const SessionId id{++last_session_};
  const Wire* key = wire.get();
  stage_->Note("{}: session {} begins", name_, id.value);
  wire->OnLost(WireEnd::kFar, [this, key, id] {
    stage_->Note("{}: session {} is lost", name_, id.value);
    sessions_.erase(key);
    wires_.erase(id);
    std::erase_if(live_, [id](const Key& key) { return key.first == id; });
    std::erase_if(doomed_, [id](const auto& entry) { return entry.first.first == id; });
    core_.Close(id, stage_->now());
    Turn();
  });
  sessions_.emplace(key, Session{id, std::move(wire), std::move(sink)});
  wires_.emplace(id, key);
  core_.Open(id);
  Turn();
}

void LeaderProcess::Take(const Wire* wire, const ToLeader& message) {
  const auto found = sessions_.find(wire);
  if (found == sessions_.end()) return;
  const SessionId session = found->second.id;
  const TimeUs now = stage_->now();
  for (const SubmitAction& submit : message.submits) {
    EngineRequest request = ToEngineRequest(submit, message.sent, now);
    const Key key{session, submit.sequence.value};
    live_.insert(key);
    if (request.deadline) doomed_[key] = {*request.deadline, -1};
    const absl::Status status =
        core_.Submit(session, submit.sequence.value, std::move(request), now);
    stage_->Require(status.ok(), "{}: a router breaks the protocol: {}", name_, MessageOf(status));
  }
  for (const CancelAction& cancel : message.cancels) {
    core_.Cancel(session, cancel.sequence.value, now);
    const Key key{session, cancel.sequence.value};
    if (live_.contains(key)) doomed_[key] = {now, steps_done_};
  }
  Turn();
}

void LeaderProcess::Drain() {
  core_.Drain(stage_->now());
  Turn();
}

void LeaderProcess::End(bool abrupt) {
  CountEngine();
  over_ = true;
  wake_.Set(kNever);
  step_.Set(kNever);
  if (!abrupt) SendNews();
  for (auto& [key, session] : sessions_) {
    if (abrupt) session.wire->Die(WireEnd::kFar);
    if (!abrupt) session.wire->Close(WireEnd::kFar);
  }
}

// --- Steps.

void LeaderProcess::Turn() {
  if (over_) return;
  const TimeUs now = stage_->now();
  while (core_.outstanding() < plan_.leader.engine.steps_max) {
    std::optional<StepPlan> plan = core_.Plan(now);
    if (!plan) break;
    Issue(std::move(*plan));
    if (over_ || !stage_->failure.empty()) return;
  }
  SendNews();
  CheckAll();
  if (core_.Drained(now)) return events_.on_drained();
  wake_.Set(core_.NextWake());
}

void LeaderProcess::Issue(StepPlan plan) {
  stage_->Note("{}: plans step {}: {} segments, {} starts, {} ends", name_, plan.step,
               plan.segments.size(), plan.starts.size(), plan.ends.size());
  if (const absl::Status status = auditor_.Take(plan); !status.ok()) {
    stage_->Fail("{}: {}", name_, MessageOf(status));
    return;
  }
  if (!plan.segments.empty()) cache_changed_at_ = stage_->now();
  ++stage_->sights.steps;
  if (!steps_.empty()) ++stage_->sights.overlapped_steps;
  const bool kills = std::any_of(plan.starts.begin(), plan.starts.end(),
                                 [&](const auto& start) { return killers_.contains(start.seed); });
  steps_.push_back(std::move(plan));
  if (kills) return events_.on_killed();
  if (steps_.size() == 1) StartStep();
}

TimeUs LeaderProcess::Duration(const StepPlan& plan) {
  int64_t tokens = 0;
  for (const Segment& segment : plan.segments) tokens += std::ssize(segment.tokens);
  const TimeUs planned = plan_.step_base + tokens * plan_.step_per_token;
  const TimeUs real = planned + dice_.In(0, planned / 4);
  return stage_->now() < slow_until_ ? kSlowness * real : real;
}

void LeaderProcess::StartStep() {
  const TimeUs duration = Duration(steps_.front());
  if (!hung_) step_.Set(stage_->now() + duration);
}

void LeaderProcess::Hang() {
  hung_ = true;
  hung_at_ = stage_->now();
  step_.Set(kNever);
}

void LeaderProcess::CompleteStep() {
  const StepPlan plan = std::move(steps_.front());
  steps_.pop_front();
  const absl::StatusOr<StepResult> result = executor_.Run(plan);
  stage_->Note("{}: step {} is done", name_, plan.step);
  ++steps_done_;
  if (!plan.segments.empty()) cache_changed_at_ = stage_->now();
  core_.Complete(*result, stage_->now());
  if (!steps_.empty()) StartStep();
  Turn();
}

void LeaderProcess::SendNews() {
  for (SessionNews& news : core_.TakeNews(stage_->now())) {
    const auto wire = wires_.find(news.session);
    if (!stage_->Require(wire != wires_.end(), "{}: news for session {}, which is closed", name_,
                         news.session.value)) {
      return;
    }
    for (const SequenceNews& sequence : news.sequences) {
      if (!sequence.delta.finish && sequence.refusal.ok()) continue;
      live_.erase({news.session, sequence.number});
      doomed_.erase({news.session, sequence.number});
    }
    const Session& session = sessions_.at(wire->second);
    FromLeader message;
    if (news.first) {
      const LeaderState& state = news.state;
      message.facts = {plan_.fingerprint, core_.context_tokens(), state.block_tokens, state.epoch,
                       state.slots};
    }
    message.news = std::move(news);
    session.wire->Send(WireEnd::kFar,
                       [sink = session.sink, message = std::move(message)] { sink(message); });
  }
}

// What the epoch's engine has seen, once it is over or the run is.
void LeaderProcess::CountEngine() {
  const EngineStats stats = core_.stats().engine;
  stage_->sights.preemptions += stats.preemptions;
  stage_->sights.accepted_tokens += stats.accepted_tokens;
  stage_->sights.rejected_tokens += stats.proposed_tokens - stats.accepted_tokens;
}

// --- Judgement.

void LeaderProcess::CheckAll() {
  if (const absl::Status status = core_.Check(); !status.ok()) {
    stage_->Fail("{}: {}", name_, MessageOf(status));
  }
  stage_->Require(core_.verdict().ok(), "{}: {}", name_, MessageOf(core_.verdict()));
  const EngineStats stats = core_.stats().engine;
  constexpr int kCanaries = 1;
  stage_->Require(stats.running + stats.waiting <= core_.sequences() + kCanaries,
                  "{}: {} sequences run and {} wait for {} that somebody wants", name_,
                  stats.running, stats.waiting, core_.sequences());
  // With nothing under way, whoever is left would wait for ever.
  stage_->Require(core_.sequences() == 0 || core_.outstanding() > 0,
                  "{}: {} sequences wait and no step is under way", name_, core_.sequences());
  CheckDoomed();
  CheckReadiness();
}

void LeaderProcess::CheckDoomed() {
  for (auto& [key, doomed] : doomed_) {
    if (doomed.steps < 0 && doomed.from <= stage_->now()) doomed.steps = steps_done_;
    if (doomed.steps < 0) continue;
    stage_->Require(steps_done_ - doomed.steps <= kStepsToEnd,
                    "{}: sequence {} of session {} was to end at {} us, {} steps ago", name_,
                    key.second, key.first.value, doomed.from, steps_done_ - doomed.steps);
  }
}

void LeaderProcess::CheckReadiness() {
  const TimeUs ready_until = core_.ready_until();
  proven_ = proven_ || ready_until > 0;
  if (!proven_) return;
  if (!hung_) {
    stage_->Require(ready_until > stage_->now(), "{}: not ready, but steps go forward", name_);
  } else if (stage_->now() >= hung_at_ + scenario_.hang_notice) {
    stage_->Require(ready_until <= stage_->now(), "{}: ready {} us after it froze", name_,
                    stage_->now() - hung_at_);
  }
}

void LeaderProcess::CheckIdle() {
  const EngineStats stats = core_.stats().engine;
  stage_->Require(core_.sequences() == 0 && stats.running <= 1 && stats.waiting <= 1,
                  "{}: {} sequences, {} running and {} waiting in the engine are left over", name_,
                  core_.sequences(), stats.running, stats.waiting);
  const bool canary = stats.running + stats.waiting > 0;
  for (int pool = 0; pool < kBlockPools; ++pool) {
    stage_->Require(canary || stats.blocks_used[pool] == 0,
                    "{}: {} blocks of pool {} are left over", name_, stats.blocks_used[pool], pool);
  }
  CountEngine();
}

std::optional<std::set<uint64_t>> LeaderProcess::TakeLinks() {
  if (stage_->now() - cache_changed_at_ < kTold) return std::nullopt;
  const SessionId witness{++last_session_};
  core_.Open(witness);
  for (const SessionNews& news : core_.TakeNews(stage_->now())) {
    if (news.session != witness || !news.cache) continue;
    return std::set<uint64_t>(news.cache->stored.begin(), news.cache->stored.end());
  }
  return std::nullopt;
}

}  // namespace facet::sim
