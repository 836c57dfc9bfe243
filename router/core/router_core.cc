#include "router/core/router_core.h"

#include <algorithm>
#include <optional>

#include "base/check.h"
#include "base/status.h"
#include "router/core/cache_salt.h"

namespace facet {
namespace {

int64_t PromptTokens(const RouterRequest& request) {
  int64_t tokens = 0;
  for (const RouterPrompt& prompt : request.prompts) tokens += std::ssize(prompt.tokens);
  return tokens * request.n;
}

// What a leader says when a sequence should run elsewhere: it was dropped without our asking, or
// the group cannot serve for now.
bool GivesBack(const LeaderDelta& delta) {
  if (delta.finish == EndReason::kCancelled) return true;
  return delta.finish == EndReason::kError && absl::IsUnavailable(delta.error);
}

}  // namespace

void RouterCore::OnGroupUp(GroupId group, GroupFacts facts) {
  groups_.Up(group, std::move(facts));
  counters_.epoch_changes = groups_.epoch_changes();
}

void RouterCore::OnGroupState(GroupId group, const GroupState& state, TimeUs now) {
  groups_.State(group, state, now);
  PlaceAll(now);
}

void RouterCore::OnGroupDown(GroupId group, TimeUs now) {
  if (!groups_.up(group)) return;
  groups_.Down(group, now);
  std::vector<std::pair<SequenceId, Place>> orphans;
  for (const auto& [number, place] : placed_) {
    if (place.sequence().group == group) orphans.emplace_back(number, place);
  }
  // The map's order is not the same in every run.
  std::sort(orphans.begin(), orphans.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [number, place] : orphans) {
    Detach(place.sequence());
    Interrupt(place, now);
  }
  PlaceAll(now);
}

absl::StatusOr<RequestId> RouterCore::Submit(RouterRequest request, TimeUs now) {
  FACET_CHECK(!request.prompts.empty() && request.n >= 1);
  FACET_RETURN_IF_ERROR(Admit(request, now));
  if (const auto old = client_ids_.find(request.client_id); old != client_ids_.end()) {
    ++counters_.takeovers;
    EndRequest(old->second, EndReason::kCancelled,
               MakeStatus(absl::StatusCode::kCancelled, "another stream took the request over"),
               now);
  }

  auto made = std::make_unique<LiveRequest>();
  LiveRequest& live = *made;
  const RequestId id{++last_request_};
  live.id = id;
  live.arrived_at = now;
  live.request = std::move(request);
  live.cache_salt = CacheSalt(live.request.tenant);
  MakeSequences(live);
  if (live.alive == 0) {
    actions_.done.push_back(id);
    return id;
  }
  requests_.emplace(id, std::move(made));
  client_ids_.emplace(live.request.client_id, id);
  if (live.request.deadline != kNever) deadlines_.emplace(live.request.deadline, id);
  if (!live.waiting.empty()) Enqueue(live);
  AwaitGroups(live, now);
  PlaceAll(now);
  return id;
}

absl::Status RouterCore::Admit(const RouterRequest& request, TimeUs now) {
  FACET_RETURN_IF_ERROR(CheckResume(request));
  if (const auto old = client_ids_.find(request.client_id); old != client_ids_.end()) {
    if (!request.takes_over || Find(old->second)->request.tenant != request.tenant) {
      return MakeStatus(absl::StatusCode::kAlreadyExists,
                        fmt::format("request_id: `{}` is in use", request.client_id));
    }
  }
  if (groups_.none_since() != kNever && now - groups_.none_since() >= options_.group_wait_us) {
    return Refuse({RefusalReason::kNoGroup, Unavailable("no group of shard workers is ready")});
  }
  if (request.deadline <= now) return DeadlineExceeded("the request's deadline passed");
  if (auto refusal = queue_.Admit(PromptTokens(request))) return Refuse(std::move(*refusal));
  return absl::OkStatus();
}

absl::Status RouterCore::Refuse(Refusal refusal) {
  ++counters_.refusals[refusal.reason];
  return WithRetryAfter(std::move(refusal.status), options_.retry_after_us);
}

void RouterCore::Enqueue(const LiveRequest& request) {
  const RouterRequest& asked = request.request;
  int64_t tokens = 0;
  for (const size_t i : request.waiting) tokens += request.known_tokens(request.sequences[i]);
  queue_.Push({request.id, asked.tenant, asked.priority, asked.deadline, tokens});
}

void RouterCore::AwaitGroups(LiveRequest& request, TimeUs now) {
  // The last sequence to end takes the request with it, so what is left is counted beforehand.
  size_t left = request.alive;
  for (size_t i = 0; left > 0; ++i) {
    const Place place{&request, i};
    const Phase phase = place.sequence().phase;
    if (phase == Phase::kEnded) continue;
    --left;
    if (phase == Phase::kPaused) AwaitGroup(place, now);
  }
}

void RouterCore::Cancel(RequestId request, TimeUs now) {
  EndRequest(request, EndReason::kCancelled,
             MakeStatus(absl::StatusCode::kCancelled, "cancelled by the client"), now);
  PlaceAll(now);
}

void RouterCore::Stop(RequestId id, int prompt_index, int choice_index, TimeUs now) {
  LiveRequest* request = Find(id);
  if (request == nullptr) return;
  const Place place{request, request->index_of(prompt_index, choice_index)};
  Sequence& sequence = place.sequence();
  if (sequence.phase == Phase::kRunning) {
    actions_.cancels.push_back({sequence.group, sequence.number});
    sequence.phase = Phase::kStopping;
    SetWait(place, now + options_.stop_grace_us);
  } else if (sequence.phase == Phase::kInterrupted || sequence.phase == Phase::kPaused) {
    End(place, MeasuredEnd(*request, sequence, EndReason::kStop, absl::OkStatus(), now),
        DeltaOf(place));
  }
}

void RouterCore::Pause(RequestId id) {
  LiveRequest* request = Find(id);
  if (request == nullptr || request->paused) return;
  request->paused = true;
  ++counters_.pauses;
  if (!request->waiting.empty()) queue_.Remove(id);
  for (size_t i = 0; i < request->sequences.size(); ++i) {
    const Place place{request, i};
    Sequence& sequence = place.sequence();
    if (sequence.phase == Phase::kRunning) {
      Recall(sequence);
    } else if (sequence.phase == Phase::kInterrupted) {
      SetWait(place, kNever);
      --interrupted_;
    } else {
      continue;
    }
    sequence.migrating = false;
    sequence.phase = Phase::kPaused;
  }
}

void RouterCore::Resume(RequestId id, TimeUs now) {
  LiveRequest* request = Find(id);
  if (request == nullptr || !request->paused) return;
  request->paused = false;
  if (!request->waiting.empty()) Enqueue(*request);
  AwaitGroups(*request, now);
  PlaceAll(now);
}

void RouterCore::OnDelta(GroupId group, LeaderDelta delta, TimeUs now) {
  const auto found = placed_.find(delta.sequence);
  if (found == placed_.end() || found->second.sequence().group != group) return;
  const Place place = found->second;
  Sequence& sequence = place.sequence();
  ChoiceDelta out = DeltaOf(place);
  if (sequence.phase == Phase::kStopping) {
    if (delta.finish) Finish(place, delta, std::move(out), now);
    return;
  }
  const Acceptance accepted = Accept(*place.request, sequence, delta, out, now);
  counters_.duplicate_tokens += accepted.duplicates;
  if (!accepted.whole) ++counters_.gaps;
  const bool whole = accepted.whole;
  if (whole && delta.finish && !GivesBack(delta)) {
    Finish(place, delta, std::move(out), now);
    return;
  }
  if (!out.tokens.empty() || !out.prompt.empty()) actions_.deltas.push_back(std::move(out));
  if (whole && !delta.finish) return;
  if (delta.finish) {
    Detach(sequence);
  } else {
    Recall(sequence);
  }
  Interrupt(place, now);
  PlaceAll(now);
}

void RouterCore::Finish(Place place, LeaderDelta& delta, ChoiceDelta out, TimeUs now) {
  const LiveRequest& request = *place.request;
  Sequence& sequence = place.sequence();
  EndReason reason = *delta.finish;
  if (sequence.phase == Phase::kStopping) {
    reason = EndReason::kStop;
  } else if (reason == EndReason::kStop && request.prompt(sequence).max_tokens == 0) {
    reason = EndReason::kLength;  // the one token that the leader chose was not asked for
  }
  absl::Status status;
  if (reason == EndReason::kDeadline) status = DeadlineExceeded("the request's deadline passed");
  if (reason == EndReason::kError) {
    status = delta.error.ok() ? Internal("the group gave no reason") : delta.error;
  }
  ChoiceEnd end = MeasuredEnd(request, sequence, reason, std::move(status), now);
  end.cached_tokens =
      std::clamp(delta.cached_tokens, 0, static_cast<int>(request.prompt(sequence).tokens.size()));
  end.logits_sha256 = std::move(delta.logits_sha256);
  if (sequence.submissions == 1) {  // else the leader saw the last part only
    end.queue_us = sequence.placed_at - request.arrived_at + delta.queue_us;
    end.prefill_us = delta.prefill_us;
    end.decode_us = delta.decode_us;
  }
  Detach(sequence);
  End(place, std::move(end), std::move(out));
  PlaceAll(now);
}

void RouterCore::PlaceAll(TimeUs now) {
  PlaceInterrupted(now);
  PlaceQueued(now);
}

void RouterCore::PlaceInterrupted(TimeUs now) {
  if (interrupted_ == 0) return;
  for (auto wait = waits_.begin(); wait != waits_.end();) {
    const auto [give_up, id, index] = *wait++;  // PlaceOn() erases the wait
    const Place place{Find(id), index};
    const Sequence& sequence = place.sequence();
    if (sequence.phase != Phase::kInterrupted) continue;
    const int64_t tokens = place.request->known_tokens(sequence);
    std::optional<std::string_view> fingerprint = sequence.fingerprint;
    if (sequence.fresh()) fingerprint.reset();
    // Where it just failed without a token it may fail again.
    std::optional<GroupId> avoid;
    if (sequence.fruitless_deaths > 0) avoid = sequence.group;
    const std::optional<GroupId> group = groups_.Choose(tokens, fingerprint, avoid);
    if (group) PlaceOn(*group, place, now);
  }
}

void RouterCore::PlaceQueued(TimeUs now) {
  while (const std::optional<RequestId> front = queue_.Front()) {
    LiveRequest& request = *Find(*front);
    const Place place{&request, request.waiting.back()};
    const Sequence& sequence = place.sequence();
    const int64_t tokens = std::ssize(request.prompt(sequence).tokens);
    const std::optional<GroupId> group = groups_.Choose(tokens);
    if (!group) {
      const int longest = groups_.context_tokens_max();
      if (longest == 0 || tokens < longest) return;
      EndRequest(*front, EndReason::kError,
                 InvalidArgument("prompts[{}]: {} tokens do not fit the context of {} tokens",
                                 sequence.prompt_index, tokens, longest),
                 now);
      continue;
    }
    queue_.Shrink(request.id, tokens);
    request.waiting.pop_back();
    if (request.waiting.empty()) queue_.Remove(request.id);
    PlaceOn(*group, place, now);
  }
}

void RouterCore::PlaceOn(GroupId group, Place place, TimeUs now) {
  Sequence& sequence = place.sequence();
  if (sequence.phase == Phase::kInterrupted) {
    SetWait(place, kNever);
    --interrupted_;
    ++counters_.resubmissions;
  }
  if (++sequence.submissions == 1) sequence.placed_at = now;
  sequence.phase = Phase::kRunning;
  sequence.number = SequenceId{++last_sequence_};
  sequence.group = group;
  sequence.fingerprint = groups_.fingerprint(group);
  placed_.emplace(sequence.number, place);
  SubmitAction submit = SubmitOf(*place.request, sequence);
  groups_.Start(group, std::ssize(submit.tokens));
  actions_.submits.push_back(std::move(submit));
}

void RouterCore::Detach(Sequence& sequence) {
  placed_.erase(sequence.number);
  sequence.number = SequenceId{};
  if (groups_.up(sequence.group)) groups_.End(sequence.group);
}

void RouterCore::Recall(Sequence& sequence) {
  actions_.cancels.push_back({sequence.group, sequence.number});
  Detach(sequence);
}

void RouterCore::Interrupt(Place place, TimeUs now) {
  const LiveRequest& request = *place.request;
  Sequence& sequence = place.sequence();
  const auto end = [&](EndReason reason, absl::Status status) {
    End(place, MeasuredEnd(request, sequence, reason, std::move(status), now), DeltaOf(place));
  };
  if (sequence.phase == Phase::kStopping) return end(EndReason::kStop, absl::OkStatus());
  if (++sequence.fruitless_deaths >= options_.fruitless_deaths_max) {
    ++counters_.poisoned;
    return end(EndReason::kError, Internal("{} groups in a row failed while they ran this sequence",
                                           sequence.fruitless_deaths));
  }
  if (!sequence.emitted.empty()) {
    ++counters_.migrations;
    sequence.migrating = true;
  }
  AwaitGroup(place, now);
}

void RouterCore::AwaitGroup(Place place, TimeUs now) {
  const LiveRequest& request = *place.request;
  Sequence& sequence = place.sequence();
  const int max_tokens = request.prompt(sequence).max_tokens;
  if (max_tokens > 0 && std::ssize(sequence.emitted) >= max_tokens) {
    return End(place, MeasuredEnd(request, sequence, EndReason::kLength, absl::OkStatus(), now),
               DeltaOf(place));
  }
  sequence.phase = Phase::kInterrupted;
  ++interrupted_;
  SetWait(place, now + options_.group_wait_us);
}

void RouterCore::End(Place place, ChoiceEnd end, ChoiceDelta out) {
  LiveRequest& request = *place.request;
  Sequence& sequence = place.sequence();
  FACET_CHECK(sequence.phase != Phase::kEnded);
  if (sequence.number.value != 0) Recall(sequence);
  if (sequence.phase == Phase::kInterrupted) --interrupted_;
  SetWait(place, kNever);
  sequence.phase = Phase::kEnded;
  end.request_done = --request.alive == 0;
  out.end = std::move(end);
  actions_.deltas.push_back(std::move(out));
  if (request.alive > 0) return;
  deadlines_.erase({request.request.deadline, request.id});
  client_ids_.erase(request.request.client_id);
  requests_.erase(RequestId{request.id});  // a copy: the key must outlive the request
}

void RouterCore::EndRequest(RequestId id, EndReason reason, const absl::Status& status,
                            TimeUs now) {
  LiveRequest* request = Find(id);
  if (request == nullptr) return;
  if (!request->waiting.empty()) {
    if (!request->paused) queue_.Remove(id);
    request->waiting.clear();
  }
  for (size_t left = request->alive, i = 0; left > 0; ++i) {
    const Place place{request, i};
    const Sequence& sequence = place.sequence();
    if (sequence.phase == Phase::kEnded) continue;
    --left;
    const bool complete = sequence.phase == Phase::kStopping;
    End(place,
        MeasuredEnd(*request, sequence, complete ? EndReason::kStop : reason,
                    complete ? absl::OkStatus() : status, now),
        DeltaOf(place));
  }
}

void RouterCore::SetWait(Place place, TimeUs give_up) {
  Sequence& sequence = place.sequence();
  if (sequence.give_up != kNever) {
    waits_.erase({sequence.give_up, place.request->id, place.index});
  }
  sequence.give_up = give_up;
  if (give_up != kNever) waits_.emplace(give_up, place.request->id, place.index);
}

void RouterCore::Tick(TimeUs now) {
  ExpireDeadlines(now);
  ExpireWaits(now);
  ExpireQueue(now);
  PlaceAll(now);
}

void RouterCore::ExpireDeadlines(TimeUs now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    EndRequest(deadlines_.begin()->second, EndReason::kDeadline,
               DeadlineExceeded("the request's deadline passed"), now);
  }
}

void RouterCore::ExpireWaits(TimeUs now) {
  while (!waits_.empty() && std::get<TimeUs>(*waits_.begin()) <= now) {
    const auto [give_up, id, index] = *waits_.begin();
    const Place place{Find(id), index};
    const Sequence& sequence = place.sequence();
    if (sequence.phase == Phase::kStopping) {
      End(place, MeasuredEnd(*place.request, sequence, EndReason::kStop, absl::OkStatus(), now),
          DeltaOf(place));
    } else if (groups_.Serves(sequence.fingerprint)) {
      SetWait(place, now + options_.group_wait_us);  // a group is there and busy
    } else {
      End(place,
          MeasuredEnd(*place.request, sequence, EndReason::kError,
                      WithRetryAfter(
                          Unavailable("the group was lost after {} output tokens and no equal one "
                                      "came up within {} s",
                                      sequence.emitted.size(), options_.group_wait_us / 1'000'000),
                          options_.retry_after_us),
                      now),
          DeltaOf(place));
    }
  }
}

void RouterCore::ExpireQueue(TimeUs now) {
  if (groups_.none_since() == kNever || now - groups_.none_since() < options_.group_wait_us) return;
  while (const std::optional<RequestId> front = queue_.Front()) {
    ++counters_.sheds[RefusalReason::kNoGroup];
    EndRequest(
        *front, EndReason::kError,
        WithRetryAfter(Unavailable("no group of shard workers is ready"), options_.retry_after_us),
        now);
  }
}

TimeUs RouterCore::NextWake() const {
  TimeUs wake = kNever;
  if (!deadlines_.empty()) wake = std::min(wake, deadlines_.begin()->first);
  if (!waits_.empty()) wake = std::min(wake, std::get<TimeUs>(*waits_.begin()));
  if (queue_.Front() && groups_.none_since() != kNever) {
    wake = std::min(wake, groups_.none_since() + options_.group_wait_us);
  }
  return wake;
}

LiveRequest* RouterCore::Find(RequestId id) {
  const auto found = requests_.find(id);
  return found == requests_.end() ? nullptr : found->second.get();
}

RouterCoreStats RouterCore::stats() const {
  return {.requests = static_cast<int64_t>(requests_.size()),
          .queued_requests = queue_.requests(),
          .queued_tokens = queue_.tokens(),
          .running_sequences = static_cast<int64_t>(placed_.size()),
          .interrupted_sequences = interrupted_};
}

}  // namespace facet
