#include "router/core/router_core.h"

#include <algorithm>

#include "base/check.h"
#include "base/prng.h"
#include "base/status.h"

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

void RouterCore::OnGroupUp(GroupId group, GroupFacts facts) { groups_.Up(group, std::move(facts)); }

void RouterCore::OnGroupState(GroupId group, const GroupState& state, TimeUs now) {
  groups_.State(group, state, now);
  PlaceAll(now);
}

void RouterCore::OnGroupDown(GroupId group, TimeUs now) {
  if (!groups_.up(group)) return;
  groups_.Down(group, now);
  std::vector<Place> orphans;
  for (const auto& [number, place] : placed_) {
    if (place.sequence().group == group) orphans.push_back(place);
  }
  for (const Place& place : orphans) {
    Detach(place.sequence());
    Interrupt(place, now);
  }
  PlaceAll(now);
}

absl::StatusOr<RequestId> RouterCore::Submit(RouterRequest request, TimeUs now) {
  FACET_CHECK(!request.prompts.empty() && request.n >= 1);
  if (client_ids_.contains(request.client_id)) {
    return MakeStatus(absl::StatusCode::kAlreadyExists,
                      fmt::format("request_id: `{}` is in use", request.client_id));
  }
  if (groups_.none_since() != kNever && now - groups_.none_since() >= options_.group_wait_us) {
    return Unavailable("no group of shard workers is ready");
  }
  if (request.deadline <= now) return DeadlineExceeded("the request's deadline passed");
  FACET_RETURN_IF_ERROR(queue_.Admit(PromptTokens(request)));

  auto live = std::make_unique<Request>();
  live->id = RequestId{++last_request_};
  live->arrived_at = now;
  for (int prompt = 0; prompt < std::ssize(request.prompts); ++prompt) {
    FACET_CHECK(!request.prompts[prompt].tokens.empty());
    for (int choice = 0; choice < request.n; ++choice) {
      live->sequences.push_back({.prompt_index = prompt, .choice_index = choice});
    }
  }
  live->alive = live->sequences.size();
  live->request = std::move(request);

  const RequestId id = live->id;
  const RouterRequest& kept = live->request;
  Enqueue(*live);
  client_ids_.emplace(kept.client_id, id);
  if (kept.deadline != kNever) deadlines_.emplace(kept.deadline, id);
  requests_.emplace(id, std::move(live));
  PlaceAll(now);
  return id;
}

void RouterCore::Enqueue(const Request& request) {
  const RouterRequest& asked = request.request;
  int64_t tokens = 0;
  for (size_t i = request.next_unplaced; i < request.sequences.size(); ++i) {
    tokens += std::ssize(request.prompt(request.sequences[i]).tokens);
  }
  queue_.Push({request.id, asked.tenant, asked.priority, asked.deadline, tokens});
}

void RouterCore::Cancel(RequestId request, TimeUs now) {
  EndRequest(request, EndReason::kCancelled,
             MakeStatus(absl::StatusCode::kCancelled, "cancelled by the client"), now);
  PlaceAll(now);
}

void RouterCore::Stop(RequestId id, int prompt_index, int choice_index, TimeUs now) {
  Request* request = Find(id);
  if (request == nullptr) return;
  const Place place{request, static_cast<size_t>(prompt_index) * request->request.n + choice_index};
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
  Request* request = Find(id);
  if (request == nullptr || request->paused) return;
  request->paused = true;
  ++counters_.pauses;
  if (request->next_unplaced < request->sequences.size()) queue_.Remove(id);
  for (size_t i = 0; i < request->next_unplaced; ++i) {
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
    sequence.phase = Phase::kPaused;
  }
}

void RouterCore::Resume(RequestId id, TimeUs now) {
  Request* request = Find(id);
  if (request == nullptr || !request->paused) return;
  request->paused = false;
  if (request->next_unplaced < request->sequences.size()) Enqueue(*request);
  // The last sequence to end takes the request with it, so what is left is counted beforehand.
  size_t left = request->alive;
  for (size_t i = 0; left > 0; ++i) {
    const Place place{request, i};
    const Phase phase = place.sequence().phase;
    if (phase == Phase::kEnded) continue;
    --left;
    if (phase == Phase::kPaused) AwaitGroup(place, now);
  }
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
  const bool whole = Accept(*place.request, sequence, delta, out, now);
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

bool RouterCore::Accept(const Request& request, Sequence& sequence, LeaderDelta& delta,
                        ChoiceDelta& out, TimeUs now) {
  const int known = static_cast<int>(sequence.emitted.size());
  const int prompt_known = sequence.prompt_scored;
  if (delta.offset > known || (!delta.prompt.empty() && delta.prompt_offset > prompt_known)) {
    ++counters_.gaps;
    return false;
  }
  const RouterPrompt& prompt = request.prompt(sequence);
  out.prompt_offset = prompt_known;
  for (size_t i = prompt_known - delta.prompt_offset; i < delta.prompt.size(); ++i) {
    if (sequence.prompt_scored >= std::ssize(prompt.tokens)) break;
    out.prompt.push_back(std::move(delta.prompt[i]));
    ++sequence.prompt_scored;
  }
  out.offset = known;
  const size_t repeated = static_cast<size_t>(known - delta.offset);
  counters_.duplicate_tokens += static_cast<int64_t>(std::min(repeated, delta.tokens.size()));
  for (size_t i = repeated; i < delta.tokens.size(); ++i) {
    if (std::ssize(sequence.emitted) >= prompt.max_tokens) break;
    sequence.emitted.push_back(delta.tokens[i].id);
    out.tokens.push_back(std::move(delta.tokens[i]));
  }
  if (!out.tokens.empty()) {
    sequence.fruitless_deaths = 0;
    if (known == 0) sequence.first_token_at = now;
    sequence.last_token_at = now;
  }
  return true;
}

void RouterCore::Finish(Place place, LeaderDelta& delta, ChoiceDelta out, TimeUs now) {
  const Request& request = *place.request;
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
    const int64_t tokens =
        std::ssize(place.request->prompt(sequence).tokens) + std::ssize(sequence.emitted);
    std::optional<std::string_view> fingerprint = sequence.fingerprint;
    if (sequence.emitted.empty() && sequence.prompt_scored == 1) fingerprint.reset();
    // Where it just failed without a token it may fail again.
    std::optional<GroupId> avoid;
    if (sequence.fruitless_deaths > 0) avoid = sequence.group;
    const std::optional<GroupId> group = groups_.Choose(tokens, fingerprint, avoid);
    if (group) PlaceOn(*group, place, now);
  }
}

void RouterCore::PlaceQueued(TimeUs now) {
  while (const std::optional<RequestId> front = queue_.Front()) {
    Request& request = *Find(*front);
    const Place place{&request, request.next_unplaced};
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
    if (++request.next_unplaced == request.sequences.size()) queue_.Remove(request.id);
    PlaceOn(*group, place, now);
  }
}

void RouterCore::PlaceOn(GroupId group, Place place, TimeUs now) {
  const RouterRequest& request = place.request->request;
  Sequence& sequence = place.sequence();
  const RouterPrompt& prompt = place.request->prompt(sequence);
  if (sequence.phase == Phase::kInterrupted) {
    SetWait(place, kNever);
    --interrupted_;
    ++counters_.resubmissions;
  } else {
    sequence.placed_at = now;
  }
  sequence.phase = Phase::kRunning;
  sequence.number = SequenceId{++last_sequence_};
  sequence.group = group;
  sequence.fingerprint = groups_.fingerprint(group);
  ++sequence.submissions;
  placed_.emplace(sequence.number, place);

  SubmitAction submit{
      .group = group,
      .sequence = sequence.number,
      .tokens = prompt.tokens,
      .prompt_length = static_cast<int>(prompt.tokens.size()),
      .seed = SequenceSeed(request.seed, sequence.prompt_index, sequence.choice_index),
      .max_tokens = std::max(1, prompt.max_tokens),
      .deadline = request.deadline,
      .params = request.params};
  submit.tokens.insert(submit.tokens.end(), sequence.emitted.begin(), sequence.emitted.end());
  submit.prompt_logprobs = request.prompt_logprobs && sequence.choice_index == 0 &&
                           sequence.prompt_scored < submit.prompt_length;
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
  const Request& request = *place.request;
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
  AwaitGroup(place, now);
}

void RouterCore::AwaitGroup(Place place, TimeUs now) {
  const Request& request = *place.request;
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
  Request& request = *place.request;
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
  Request* request = Find(id);
  if (request == nullptr) return;
  if (request->next_unplaced < request->sequences.size()) {
    if (!request->paused) queue_.Remove(id);
    request->next_unplaced = request->sequences.size();
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

ChoiceEnd RouterCore::MeasuredEnd(const Request& request, const Sequence& sequence,
                                  EndReason reason, absl::Status status, TimeUs now) {
  ChoiceEnd end{.reason = reason, .status = std::move(status)};
  const bool placed = sequence.submissions > 0;
  const bool answered = !sequence.emitted.empty();
  end.queue_us = (placed ? sequence.placed_at : now) - request.arrived_at;
  if (placed) end.prefill_us = (answered ? sequence.first_token_at : now) - sequence.placed_at;
  if (answered) end.decode_us = sequence.last_token_at - sequence.first_token_at;
  return end;
}

ChoiceDelta RouterCore::DeltaOf(const Place& place) {
  const Sequence& sequence = place.sequence();
  return {.request = place.request->id,
          .prompt_index = sequence.prompt_index,
          .choice_index = sequence.choice_index,
          .offset = static_cast<int>(sequence.emitted.size()),
          .prompt_offset = sequence.prompt_scored};
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
                      Unavailable("the group was lost after {} output tokens and no equal one "
                                  "came up within {} s",
                                  sequence.emitted.size(), options_.group_wait_us / 1'000'000),
                      now),
          DeltaOf(place));
    }
  }
}

void RouterCore::ExpireQueue(TimeUs now) {
  if (groups_.none_since() == kNever || now - groups_.none_since() < options_.group_wait_us) return;
  while (const std::optional<RequestId> front = queue_.Front()) {
    EndRequest(*front, EndReason::kError, Unavailable("no group of shard workers is ready"), now);
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

RouterCore::Request* RouterCore::Find(RequestId id) {
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
