#include "router/service/dispatcher.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/status.h"
#include "router/core/refusal.h"

namespace facet {
namespace {

constexpr TimeUs kHousekeepUs = 1'000'000;

// What a leader is told, so that its own answer to a passed deadline arrives before ours.
int64_t RemainingForLeader(TimeUs deadline, TimeUs now) {
  if (deadline == kNever) return 0;
  const TimeUs remaining = std::max<TimeUs>(1, deadline - now);
  return std::max<TimeUs>(1, remaining - std::min<TimeUs>(10'000, remaining / 10));
}

v1::Submit MessageOf(const SubmitAction& action, TimeUs now) {
  v1::Submit submit = static_cast<const SubmitParams&>(*action.params).submit;
  submit.set_sequence(action.sequence.value);
  submit.mutable_tokens()->Add(action.tokens.begin(), action.tokens.end());
  submit.set_prompt_length(action.prompt_length);
  submit.set_seed(action.seed);
  submit.set_max_tokens(action.max_tokens);
  submit.set_prompt_logprobs(action.prompt_logprobs);
  submit.set_cache_salt(action.cache_salt);
  submit.set_remaining_us(RemainingForLeader(action.deadline, now));
  return submit;
}

}  // namespace

Dispatcher::Dispatcher(DispatcherOptions options, const ServedModel& model, RouterMetrics& metrics,
                       std::unique_ptr<grpc::CompletionQueue> queue,
                       std::function<void(bool ready)> on_ready,
                       std::function<int(TimeUs before)> give_up_stalled)
    : options_(std::move(options)),
      model_(model),
      metrics_(metrics),
      on_ready_(std::move(on_ready)),
      give_up_stalled_(std::move(give_up_stalled)),
      context_tokens_(model.context_tokens),
      last_turn_(MonotonicNow()),
      core_(options_.core, MonotonicNow()) {
  thread_ = std::make_unique<SerialThread>([this] { return Turn(); }, std::move(queue));
  LeaderSessionOptions session = options_.session;
  session.model_digest = model_.digest;
  LeaderSession::Listener& listener = *this;
  leaders_ = std::make_unique<LeaderPool>(std::move(session), *thread_, listener,
                                          [this] { return core_.AddGroup(); });
  thread_->Post([] {});  // for the first turn; each asks for the next
  names_ = std::make_unique<LeaderNames>(
      options_.leaders, options_.resolve, [this](std::vector<std::string> addresses) {
        thread_->Post(
            [this, addresses = std::move(addresses)] { leaders_->SetAddresses(addresses); });
      });
}

Dispatcher::~Dispatcher() {
  names_.reset();
  thread_->Post([this] {
    closing_ = true;
    leaders_->Close();
    NoteClosed();
  });
  closed_.WaitForNotification();
  thread_.reset();
}

void Dispatcher::Submit(std::shared_ptr<Generation> generation) {
  const bool posted =
      thread_->TryPost([this, generation] { Admit(generation); }, options_.waiting_tasks_max);
  if (posted) return;
  generation->Refuse(
      WithRetryAfter(ResourceExhausted("the router is overloaded"), options_.overloaded_retry_us),
      MonotonicNow());
}

void Dispatcher::Admit(std::shared_ptr<Generation> generation) {
  const TimeUs now = MonotonicNow();
  if (generation->sink().cancelled()) {
    return generation->Refuse(MakeStatus(absl::StatusCode::kCancelled, "cancelled by the client"),
                              now);
  }
  const absl::StatusOr<RequestId> id = core_.Submit(generation->TakeRequest(), now);
  if (!id.ok()) return generation->Refuse(id.status(), now);
  requests_of_sinks_.emplace(&generation->sink(), *id);
  generations_.emplace(*id, generation);
  Follow(generation, *id, generation->Begin(), now);
}

void Dispatcher::Cancel(const ResponseSink* sink) {
  PostFor(sink, [this](RequestId id) { core_.Cancel(id, MonotonicNow()); });
}

void Dispatcher::Resume(const ResponseSink* sink) {
  PostFor(sink, [this](RequestId id) { core_.Resume(id, MonotonicNow()); });
}

void Dispatcher::PostFor(const ResponseSink* sink, std::function<void(RequestId id)> task) {
  // Nothing may follow the sink here; it may be gone, but then no other can have its place yet:
  // that one's Admit() would be posted after this.
  thread_->Post([this, sink, task = std::move(task)] {
    const auto found = requests_of_sinks_.find(sink);
    if (found != requests_of_sinks_.end()) task(found->second);
  });
}

bool Dispatcher::Query(std::function<void(const v1::GetStatusResponse& status)> answer) {
  return thread_->TryPost([this, answer = std::move(answer)] { answer(Status()); },
                          options_.waiting_tasks_max);
}

bool Dispatcher::Profile(TimeUs duration) {
  v1::RouterMessage message;
  message.set_profile_us(duration);
  return thread_->TryPost([this, message] { leaders_->SendToAll(message); },
                          options_.waiting_tasks_max);
}

void Dispatcher::Abandon(const absl::Status& status) {
  thread_->Post([this, status] {
    const TimeUs now = MonotonicNow();
    const auto generations = std::exchange(generations_, {});
    requests_of_sinks_.clear();
    for (const auto& [id, generation] : generations) {
      generation->Abandon(status, now);
      core_.Cancel(id, now);
    }
  });
}

std::chrono::milliseconds Dispatcher::Age() const {
  return std::chrono::milliseconds((MonotonicNow() - last_turn_) / 1000);
}

TimeUs Dispatcher::Turn() {
  const TimeUs now = MonotonicNow();
  last_turn_ = now;
  if (core_.NextWake() <= now) core_.Tick(now);
  CarryOut(now);
  const TimeUs wake = std::min(core_.NextWake(), leaders_->Tick(now));
  if (now >= housekeep_at_) Housekeep(now);
  return std::min(wake, housekeep_at_);
}

void Dispatcher::CarryOut(TimeUs now) {
  // Delivering may ask the core for more: a stop string ends a choice.
  for (CoreActions actions = core_.TakeActions(); !actions.empty(); actions = core_.TakeActions()) {
    SendToLeaders(actions, now);
    for (ChoiceDelta& delta : actions.deltas) Deliver(std::move(delta), now);
    for (const RequestId id : actions.done) {
      if (const auto found = generations_.find(id); found != generations_.end()) {
        found->second->OnDone(now);
        Forget(id);
      }
    }
  }
  for (const auto& generation : unflushed_) generation->Flush();
  unflushed_.clear();
}

void Dispatcher::SendToLeaders(CoreActions& actions, TimeUs now) {
  std::map<GroupId, v1::RouterMessage> messages;
  for (const SubmitAction& submit : actions.submits) {
    *messages[submit.group].add_submits() = MessageOf(submit, now);
  }
  for (const CancelAction& cancel : actions.cancels) {
    messages[cancel.group].add_cancels()->set_sequence(cancel.sequence.value);
  }
  for (auto& [group, message] : messages) leaders_->Send(group, std::move(message));
}

void Dispatcher::Deliver(ChoiceDelta delta, TimeUs now) {
  const RequestId id = delta.request;
  const int prompt_index = delta.prompt_index, choice_index = delta.choice_index;
  const auto found = generations_.find(id);
  if (found == generations_.end()) return;  // dropped
  const std::shared_ptr<Generation> generation = found->second;
  const bool done = delta.end && delta.end->request_done;
  const Generation::Advice advice = generation->OnDelta(std::move(delta), now);
  if (advice.stop) core_.Stop(id, prompt_index, choice_index, now);
  Follow(generation, id, advice, now);
  if (done) Forget(id);
}

void Dispatcher::Follow(const std::shared_ptr<Generation>& generation, RequestId id,
                        const Generation::Advice& advice, TimeUs now) {
  if (advice.flush) unflushed_.push_back(generation);
  if (advice.pause) core_.Pause(id);
  if (advice.drop) core_.Cancel(id, now);
}

void Dispatcher::Forget(RequestId id) {
  const auto found = generations_.find(id);
  if (found == generations_.end()) return;
  requests_of_sinks_.erase(&found->second->sink());
  generations_.erase(found);
}

void Dispatcher::OnLeaderUp(GroupId group, GroupFacts facts) {
  core_.OnGroupUp(group, std::move(facts));
  NoteGroups();
}

void Dispatcher::OnLeaderState(GroupId group, const GroupState& state) {
  core_.OnGroupState(group, state, MonotonicNow());
  NoteGroups();
}

void Dispatcher::OnLeaderCacheNews(GroupId group, const GroupCacheNews& news) {
  core_.OnCacheNews(group, news);
}

void Dispatcher::OnLeaderDelta(GroupId group, LeaderDelta delta) {
  core_.OnDelta(group, std::move(delta), MonotonicNow());
}

void Dispatcher::OnLeaderDown(GroupId group) {
  core_.OnGroupDown(group, MonotonicNow());
  NoteGroups();
}

void Dispatcher::OnLeaderClosed(GroupId group) {
  leaders_->NoteClosed(group);
  NoteClosed();
}

void Dispatcher::NoteClosed() {
  if (leaders_->closed() && !closed_.HasBeenNotified()) closed_.Notify();
}

void Dispatcher::NoteGroups() {
  int context_tokens = 0;
  for (const v1::GroupStatus* status : leaders_->statuses()) {
    if (status->ready())
      context_tokens = std::max(context_tokens, status->model().context_tokens());
  }
  if (context_tokens > 0) context_tokens_ = context_tokens;
  const bool ready = context_tokens > 0;
  if (ready == ready_ || closing_) return;
  ready_ = ready;
  on_ready_(ready);
}

void Dispatcher::Housekeep(TimeUs now) {
  housekeep_at_ = now + kHousekeepUs;
  metrics_.slow_readers_dropped.Increment(give_up_stalled_(now - options_.stall_max_us));
  const auto statuses = leaders_->statuses();
  const auto ready = std::count_if(statuses.begin(), statuses.end(),
                                   [](const v1::GroupStatus* status) { return status->ready(); });
  metrics_.Publish(core_.stats(), core_.counters(),
                   core_.TopTenants(options_.core.tenants.tenants_max), static_cast<int>(ready));
}

v1::GetStatusResponse Dispatcher::Status() const {
  v1::GetStatusResponse response;
  for (const v1::GroupStatus* status : leaders_->statuses()) *response.add_groups() = *status;
  const RouterCoreStats stats = core_.stats();
  response.set_queued_requests(stats.queued_requests);
  response.set_running_requests(stats.requests - stats.queued_requests);
  return response;
}

}  // namespace facet
