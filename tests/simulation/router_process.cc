#include "tests/simulation/router_process.h"

#include <algorithm>

#include "base/prng.h"
#include "base/status.h"
#include "router/core/refusal.h"

namespace facet::sim {
namespace {

constexpr TimeUs kBackoffLeast = 100 * kMs;
constexpr TimeUs kBackoffMost = 2 * kSecond;
constexpr size_t kTenantsMax = 64;

size_t IndexOf(const RequestPlan& plan, int prompt_index, int choice_index) {
  return static_cast<size_t>(prompt_index) * static_cast<size_t>(plan.n) +
         static_cast<size_t>(choice_index);
}

bool HasTokens(const Call& call) {
  return std::any_of(call.resume.begin(), call.resume.end(),
                     [](const ResumePoint& point) { return !point.tokens.empty(); });
}

// The seed of the sequence of a choice, by its index in the request.
uint64_t SeedOf(const RequestPlan& plan, size_t index) {
  const auto n = static_cast<size_t>(plan.n);
  return SequenceSeed(plan.seed, static_cast<uint32_t>(index / n),
                      static_cast<uint32_t>(index % n));
}

}  // namespace

RouterProcess::RouterProcess(Stage* stage, const Scenario& scenario, int number, int life,
                             const std::vector<LeaderPort*>& leaders)
    : stage_(stage),
      scenario_(scenario),
      name_(fmt::format("router {}", number)),
      leaders_(leaders),
      number_(number),
      dice_(scenario.seed, name_, static_cast<uint64_t>(life)),
      core_(scenario.core, stage->now()),
      fairness_(stage, name_, scenario.core.tenants),
      wake_(&stage->queue, [this] { Settle(); }) {
  absent_since_[""] = stage->now();
  for (const GroupPlan& group : scenario.groups) absent_since_[group.fingerprint] = stage->now();
  for (size_t i = 0; i < leaders.size(); ++i) {
    Session& session = sessions_.emplace_back();
    session.id = core_.AddGroup();
    session.connect = std::make_unique<Alarm>(&stage->queue, [this, i] { Connect(i); });
    session.silence = std::make_unique<Alarm>(&stage->queue, [this, i] { OnSilence(i); });
    session.backoff = kBackoffLeast;
    session.connect->Set(stage->now());
  }
}

// --- Clients.

void RouterProcess::Take(std::shared_ptr<Wire> wire, Call call, RouterPort::Sink sink) {
  const TimeUs now = stage_->now();
  RouterRequest request = ToRouterRequest(call, now);
  const TimeUs deadline = request.deadline;
  stage_->Note("{} takes request {} of {}: {} prompts x {}, {} resumed", name_, call.plan->number,
               call.plan->tenant, call.plan->prompts.size(), call.plan->n, call.resume.size());
  const absl::StatusOr<RequestId> id = core_.Submit(std::move(request), now);
  if (!id.ok()) {
    Refuse(*wire, sink, id.status());
    return Settle();
  }
  Stream& stream = streams_[*id];
  stream.id = *id;
  stream.wire = std::move(wire);
  stream.sink = std::move(sink);
  stream.deadline = deadline;
  stream.choices.resize(call.plan->prompts.size() * static_cast<size_t>(call.plan->n));
  for (size_t i = 0; i < stream.choices.size(); ++i) {
    places_[SeedOf(*call.plan, i)] = {*id, i};
  }
  stream.call = std::move(call);
  stream.patience = std::make_unique<Alarm>(&stage_->queue, [this, id = *id] { DropReader(id); });
  stream.wire->OnLost(WireEnd::kFar, [this, id = *id] {
    core_.Cancel(id, stage_->now());
    Forget(id);
    Settle();
  });
  StopResumed(stream);
  Settle();
}

// What the client has may be complete already: only the news of the end was lost.
void RouterProcess::StopResumed(Stream& stream) {
  const RequestPlan& plan = *stream.call.plan;
  for (const ResumePoint& point : stream.call.resume) {
    Choice& choice = stream.choices[IndexOf(plan, point.prompt_index, point.choice_index)];
    choice.fingerprint = point.fingerprint;
    const size_t size = point.tokens.size();
    if (size > 0) choice.last_token = point.tokens.back();
    if (point.finished || size < 2 || !plan.stop_pair) continue;
    if (std::pair(point.tokens[size - 2], point.tokens[size - 1]) != *plan.stop_pair) continue;
    choice.stopped = true;
    core_.Stop(stream.id, point.prompt_index, point.choice_index, stage_->now());
  }
}

void RouterProcess::Refuse(Wire& wire, const RouterPort::Sink& sink, const absl::Status& status) {
  if (absl::IsUnavailable(status)) {
    const TimeUs since = AbsentSince("");
    stage_->Require(since != kNever && stage_->now() - since >= scenario_.core.group_wait_us,
                    "{}: refused a request with: {}, but a group was there {} us ago", name_,
                    MessageOf(status), since == kNever ? 0 : stage_->now() - since);
  }
  Reply reply;
  reply.status = status;
  wire.Send(WireEnd::kFar, [sink, reply] { sink(reply); });
  wire.Close(WireEnd::kFar);
}

void RouterProcess::Deliver(ChoiceDelta delta) {
  const auto found = streams_.find(delta.request);
  if (found == streams_.end()) return;  // its client is gone
  Stream& stream = found->second;
  const RequestPlan& plan = *stream.call.plan;
  fairness_.Output(plan.tenant, std::ssize(delta.tokens));
  Choice& choice = stream.choices[IndexOf(plan, delta.prompt_index, delta.choice_index)];
  if (!delta.fingerprint.empty()) choice.fingerprint = delta.fingerprint;
  // Scores of the prompt bind it too, and do not say to whom.
  if (!delta.prompt.empty() && choice.group) {
    choice.fingerprint = sessions_[choice.group->value].fingerprint;
  }
  if (!delta.tokens.empty()) choice.deaths = 0;
  if (choice.stopped) {
    if (!stage_->Require(delta.tokens.empty(), "{}: tokens of a stopped choice", name_)) return;
    delta.offset -= choice.cut;
  } else if (MeetsStop(plan, choice, &delta)) {
    choice.stopped = true;
    ++stage_->sights.stops;
    if (delta.end) delta.end->reason = EndReason::kStop;
    if (!delta.end)
      core_.Stop(delta.request, delta.prompt_index, delta.choice_index, stage_->now());
  }
  if (delta.migration_gap) ++stage_->sights.migrations;
  if (delta.end) CheckEnd(stream, choice, delta);
  stream.outbox_tokens += std::ssize(delta.tokens);
  stream.outbox.done = delta.end && delta.end->request_done;
  stream.outbox.deltas.push_back(std::move(delta));
  Write(stream);
}

// Cuts what follows the stop pair off.
bool RouterProcess::MeetsStop(const RequestPlan& plan, Choice& choice, ChoiceDelta* delta) {
  for (size_t i = 0; i < delta->tokens.size(); ++i) {
    const TokenId token = delta->tokens[i].id;
    const std::optional<TokenId> before = std::exchange(choice.last_token, token);
    if (!plan.stop_pair || !before || *plan.stop_pair != std::pair(*before, token)) continue;
    choice.cut = static_cast<int>(delta->tokens.size() - (i + 1));
    delta->tokens.resize(i + 1);
    return true;
  }
  return false;
}

void RouterProcess::Write(Stream& stream) {
  if (stream.writing) {
    if (stream.outbox_tokens <= scenario_.ring_tokens || stream.paused) return;
    stream.paused = true;
    ++stage_->sights.pauses;
    stage_->Note("{} pauses request {}", name_, stream.call.plan->number);
    core_.Pause(stream.id);
    stream.patience->Set(stage_->now() + scenario_.reader_patience);
    return;
  }
  Reply reply = std::exchange(stream.outbox, {});
  stream.outbox_tokens = 0;
  stream.writing = stream.call.plan->read_delay > 0;
  if (stream.writing) stream.patience->Set(stage_->now() + scenario_.reader_patience);
  const bool done = reply.done;
  stream.wire->Send(WireEnd::kFar, [sink = stream.sink, reply = std::move(reply)] { sink(reply); });
  if (done) stream.wire->Close(WireEnd::kFar);
  if (done) Forget(stream.id);
}

void RouterProcess::Acknowledge(const Wire* wire) {
  Stream* stream = StreamOf(wire);
  if (stream == nullptr) return;
  stream->writing = false;
  stream->patience->Set(kNever);
  if (stream->paused) {
    stream->paused = false;
    stream->was_paused = true;
    core_.Resume(stream->id, stage_->now());
  }
  if (!stream->outbox.deltas.empty() || stream->outbox.done) Write(*stream);
  Settle();
}

RouterProcess::Stream* RouterProcess::StreamOf(const Wire* wire) {
  for (auto& [id, stream] : streams_) {
    if (stream.wire.get() == wire) return &stream;
  }
  return nullptr;
}

void RouterProcess::DropReader(RequestId id) {
  Stream& stream = streams_.at(id);
  stage_->Note("{} drops the reader of request {}", name_, stream.call.plan->number);
  Refuse(*stream.wire, stream.sink, absl::AbortedError("reads too slowly"));
  core_.Cancel(id, stage_->now());
  Forget(id);
  Settle();
}

void RouterProcess::Forget(RequestId id) {
  const auto found = streams_.find(id);
  const Stream& stream = found->second;
  for (size_t i = 0; i < stream.choices.size(); ++i) {
    // Another stream of the same client may have taken the place.
    const auto place = places_.find(SeedOf(*stream.call.plan, i));
    if (place != places_.end() && place->second.first == id) places_.erase(place);
  }
  streams_.erase(found);
}

// --- The core.

void RouterProcess::Settle() {
  Act();
  if (core_.NextWake() <= stage_->now()) {
    core_.Tick(stage_->now());
    Act();
  }
  wake_.Set(core_.NextWake());
  CheckBounds();
}

void RouterProcess::Act() {
  // Delivering may ask the core for more: a stop pair ends a choice.
  for (CoreActions actions = core_.TakeActions(); !actions.empty(); actions = core_.TakeActions()) {
    SendToLeaders(actions);
    for (ChoiceDelta& delta : actions.deltas) Deliver(std::move(delta));
    for (const RequestId id : actions.done) {
      const auto found = streams_.find(id);
      if (found == streams_.end()) continue;
      found->second.outbox.done = true;
      Write(found->second);
    }
  }
  fairness_.Take(core_.TopTenants(kTenantsMax));
}

void RouterProcess::SendToLeaders(CoreActions& actions) {
  std::vector<ToLeader> messages(sessions_.size(), ToLeader{.sent = stage_->now()});
  for (SubmitAction& submit : actions.submits) {
    stage_->Note("{} submits {} to group {}: {} tokens, {} of them output", name_,
                 submit.sequence.value, submit.group.value, submit.tokens.size(),
                 submit.tokens.size() - static_cast<size_t>(submit.prompt_length));
    NotePlacement(submit);
    const uint32_t group = submit.group.value;
    if (!stage_->Require(sessions_[group].up, "{}: a submit to group {}, which is down", name_,
                         group)) {
      return;
    }
    messages[group].submits.push_back(std::move(submit));
  }
  for (const CancelAction& cancel : actions.cancels) {
    stage_->Note("{} cancels {} at group {}", name_, cancel.sequence.value, cancel.group.value);
    messages[cancel.group.value].cancels.push_back(cancel);
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].submits.empty() && messages[i].cancels.empty()) continue;
    Session& session = sessions_[i];
    if (session.wire == nullptr) continue;
    session.wire->Send(WireEnd::kNear,
                       [leader = leaders_[i], wire = session.wire, message = messages[i]] {
                         leader->Take(wire.get(), message);
                       });
  }
}

// --- Leaders.

void RouterProcess::Connect(size_t group) {
  Session& session = sessions_[group];
  session.wire = std::make_shared<Wire>(stage_, dice_.Next(), scenario_.session_wire);
  session.wire->Hold(session.held_until);
  session.opened_at = stage_->now();
  session.wire->OnLost(WireEnd::kNear, [this, group] { OnSessionEnd(group); });
  session.silence->Set(stage_->now() + scenario_.silence_max);
  session.wire->Send(WireEnd::kNear, [this, group, leader = leaders_[group], wire = session.wire,
                                      number = number_] {
    leader->Open(wire, number, [this, group](const FromLeader& m) { OnMessage(group, m); });
  });
}

void RouterProcess::OnMessage(size_t group, const FromLeader& message) {
  Session& session = sessions_[group];
  const TimeUs now = stage_->now();
  session.silence->Set(now + scenario_.silence_max);
  if (!session.up) {
    if (!stage_->Require(message.news.first, "{}: group {} did not introduce itself", name_,
                         group)) {
      return;
    }
    session.up = true;
    session.backoff = kBackoffLeast;
    session.fingerprint = message.facts.fingerprint;
    core_.OnGroupUp(session.id, message.facts);
  }
  for (const SequenceNews& news : message.news.sequences) {
    core_.OnDelta(session.id, ToLeaderDelta(news), now);
    Act();
  }
  if (message.news.cache) TakeCacheNews(session, *message.news.cache);
  session.draining = message.news.state.draining;
  NotePresence();
  core_.OnGroupState(session.id, ToGroupState(message.news.state), now);
  Settle();
}

void RouterProcess::TakeCacheNews(Session& session, const CachePart& part) {
  if (part.reset) session.links.clear();
  session.links.insert(part.stored.begin(), part.stored.end());
  for (const uint64_t link : part.evicted) session.links.erase(link);
  core_.OnCacheNews(session.id, ToGroupCacheNews(part));
}

void RouterProcess::OnSilence(size_t group) {
  stage_->Note("{} gives silent group {} up", name_, group);
  // What took the messages' time away must have been a fault.
  const TimeUs all_well = std::max(
      {leaders_[group]->SteadySince(), sessions_[group].opened_at, sessions_[group].held_until});
  const bool should_have_spoken =
      all_well < stage_->now() - scenario_.silence_max && sessions_[group].wire->intact();
  stage_->Require(!should_have_spoken, "{}: group {} was silent for {} us and all was well", name_,
                  group, scenario_.silence_max);
  sessions_[group].wire->Close(WireEnd::kNear);
  OnSessionEnd(group);
}

void RouterProcess::OnSessionEnd(size_t group) {
  stage_->Note("{}: the session with group {} has ended", name_, group);
  LeaveSession(group);
  Settle();
}

void RouterProcess::LeaveSession(size_t group) {
  Session& session = sessions_[group];
  session.wire.reset();
  session.links.clear();
  session.silence->Set(kNever);
  session.connect->Set(stage_->now() + session.backoff);
  session.backoff = std::min(2 * session.backoff, kBackoffMost);
  if (!std::exchange(session.up, false)) return;
  NotePresence();
  NoteDeath(session.id);
  core_.OnGroupDown(session.id, stage_->now());
}

void RouterProcess::BreakSession(size_t group) {
  if (sessions_[group].wire != nullptr) sessions_[group].wire->Break();
}

void RouterProcess::HoldSession(size_t group, TimeUs until) {
  sessions_[group].held_until = std::max(sessions_[group].held_until, until);
  if (sessions_[group].wire != nullptr) sessions_[group].wire->Hold(until);
}

void RouterProcess::Die() {
  stage_->sights.takeovers += core_.counters().takeovers;
  for (auto& [id, stream] : streams_) stream.wire->Die(WireEnd::kFar);
  for (Session& session : sessions_) {
    if (session.wire != nullptr) session.wire->Die(WireEnd::kNear);
  }
}

// --- Judgement.

void RouterProcess::NotePresence() {
  for (auto& [fingerprint, since] : absent_since_) {
    const bool present = std::any_of(sessions_.begin(), sessions_.end(), [&](const Session& s) {
      return s.up && !s.draining && (fingerprint.empty() || s.fingerprint == fingerprint);
    });
    if (present) {
      since = kNever;
    } else if (since == kNever) {
      since = stage_->now();
    }
  }
}

TimeUs RouterProcess::AbsentSince(const std::string& fingerprint) const {
  return absent_since_.at(fingerprint);
}

void RouterProcess::NotePlacement(const SubmitAction& submit) {
  const auto place = places_.find(submit.seed);
  if (place == places_.end()) return;  // its client is gone; a cancel follows
  const auto& [id, index] = place->second;
  Stream& stream = streams_.at(id);
  fairness_.Left(stream.call.plan->tenant);
  stream.ran = true;
  stream.choices[index].group = submit.group;
}

void RouterProcess::NoteDeath(GroupId group) {
  for (auto& [id, stream] : streams_) {
    for (Choice& choice : stream.choices) {
      if (choice.group == group) ++choice.deaths;
    }
  }
}

void RouterProcess::CheckEnd(const Stream& stream, const Choice& choice, const ChoiceDelta& delta) {
  if (delta.end->reason != EndReason::kError) return;
  const absl::Status& status = delta.end->status;
  const std::string what =
      fmt::format("{}: request {} choice {}.{} ended with: {}", name_, stream.call.plan->number,
                  delta.prompt_index, delta.choice_index, status.ToString());
  if (absl::IsUnavailable(status)) return CheckUnavailable(choice, status, what);
  if (absl::IsResourceExhausted(status)) {
    stage_->Require(!stream.ran && !HasTokens(stream.call), "{}, but it had begun", what);
    stage_->Require(RetryAfter(status).has_value(), "{}, without a retry delay", what);
  } else if (absl::IsInternal(status) &&
             status.message().find("finite") == std::string_view::npos) {
    stage_->Require(choice.deaths >= scenario_.core.fruitless_deaths_max,
                    "{}, but {} of its groups died meanwhile", what, choice.deaths);
  }
}

void RouterProcess::CheckUnavailable(const Choice& choice, const absl::Status& status,
                                     const std::string& what) {
  stage_->Require(RetryAfter(status).has_value(), "{}, without a retry delay", what);
  if (status.message().find("retried") != std::string_view::npos) {
    stage_->Require(choice.group.has_value(), "{}, but it was on no group", what);
    ++stage_->sights.unretried;
    return;
  }
  const TimeUs since = AbsentSince(choice.fingerprint);
  stage_->Require(since != kNever && stage_->now() - since >= scenario_.core.group_wait_us,
                  "{}, but an equal group was there {} us ago", what,
                  since == kNever ? 0 : stage_->now() - since);
}

void RouterProcess::CheckBounds() {
  if (const absl::Status status = core_.Check(); !status.ok()) {
    stage_->Fail("{}: {}", name_, MessageOf(status));
  }
  // What has never run keeps to the queue's bounds; what has run comes back whatever they are.
  int64_t fresh = 0, fresh_tokens = 0;
  for (const auto& [id, stream] : streams_) {
    if (stream.outbox.done) continue;
    stage_->Require(stream.deadline > stage_->now(), "{}: request {} outlives its deadline", name_,
                    stream.call.plan->number);
    if (stream.ran || stream.paused || stream.was_paused || !stream.call.resume.empty()) continue;
    ++fresh;
    for (const auto& prompt : stream.call.plan->prompts) {
      fresh_tokens += std::ssize(prompt) * stream.call.plan->n;
    }
  }
  const RequestQueueOptions& bounds = scenario_.core.queue;
  stage_->Require(fresh <= bounds.requests_max && (fresh == 1 || fresh_tokens <= bounds.tokens_max),
                  "{}: {} requests of {} tokens wait, at most {} of {} may", name_, fresh,
                  fresh_tokens, bounds.requests_max, bounds.tokens_max);
  const RouterCoreStats stats = core_.stats();
  stage_->Require(stats.queued_requests <= std::ssize(streams_),
                  "{}: {} requests wait, but only {} have a stream", name_, stats.queued_requests,
                  streams_.size());
}

void RouterProcess::CheckLinks(size_t group, const std::set<uint64_t>& links) {
  const Session& session = sessions_[group];
  if (!session.up || session.held_until > session.opened_at) return;
  ++stage_->sights.mirrors;
  stage_->Require(session.links == links, "{}: heard of {} cached prefixes, group {} has {}", name_,
                  session.links.size(), group, links.size());
}

void RouterProcess::CheckIdle() {
  stage_->sights.takeovers += core_.counters().takeovers;
  const RouterCoreStats stats = core_.stats();
  stage_->Require(
      streams_.empty() && stats.requests == 0 && stats.queued_requests == 0 &&
          stats.queued_tokens == 0 && stats.running_sequences == 0 &&
          stats.interrupted_sequences == 0,
      "{}: {} requests, {} queued of {} tokens, {} sequences running and {} interrupted "
      "are left over",
      name_, stats.requests, stats.queued_requests, stats.queued_tokens, stats.running_sequences,
      stats.interrupted_sequences);
}

}  // namespace facet::sim
