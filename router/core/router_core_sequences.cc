// RouterCore: sequences, where they run and where they wait.

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "router/core/router_core.h"

namespace facet {
namespace {

// The group cannot serve for now: it drains, say.
bool Declines(const LeaderDelta& delta) {
  return delta.finish == EndReason::kError && absl::IsUnavailable(delta.error);
}

// What a leader says when a sequence should run elsewhere: it declines it, or has dropped it
// without our asking.
bool GivesBack(const LeaderDelta& delta) {
  return Declines(delta) || delta.finish == EndReason::kCancelled;
}

// The fingerprint that a group must have.
std::optional<std::string_view> BoundTo(const RoutedSequence& sequence) {
  if (sequence.fresh()) return std::nullopt;
  return sequence.fingerprint;
}

}  // namespace

void RouterCore::OnGroupUp(GroupId group, GroupFacts facts) {
  groups_.Up(group, std::move(facts));
  counters_.epoch_changes = groups_.epoch_changes();
}

void RouterCore::OnGroupState(GroupId group, const GroupState& state, TimeUs now) {
  const std::string fingerprint = groups_.fingerprint(group);
  const bool served = groups_.Serves(fingerprint);
  groups_.State(group, state, now);
  if (served && !groups_.Serves(fingerprint)) RestartWaits(fingerprint, now);
  const bool outage = groups_.none_since() != kNever;
  if (outage_ && !outage) {
    // Waiting for a group was no overload.
    queue_.PutOffHopeless(now + options_.ttft_target_us);
    rate_.Reset(now);
  }
  outage_ = outage;
  PlaceAll(now);
}

void RouterCore::OnGroupDown(GroupId group, TimeUs now) {
  if (!groups_.up(group)) return;
  const std::string fingerprint = groups_.fingerprint(group);
  const bool served = groups_.Serves(fingerprint);
  groups_.Down(group, now);
  if (served && !groups_.Serves(fingerprint)) RestartWaits(fingerprint, now);
  outage_ = groups_.none_since() != kNever;
  rate_.Reset(now);
  for (const Place& place : running_.On(group)) {
    Detach(place);
    Interrupt(place, /*failed=*/true, now);
  }
  PlaceAll(now);
}

void RouterCore::OnDelta(GroupId group, LeaderDelta delta, TimeUs now) {
  const std::optional<Place> found = running_.Find(delta.sequence);
  if (!found || found->sequence().group != group) return;
  const Place place = *found;
  RoutedSequence& sequence = place.sequence();
  ChoiceDelta out = DeltaOf(place);
  if (sequence.phase == Phase::kStopping) {
    if (delta.finish) Finish(place, delta, std::move(out), now);
    return;
  }
  const Acceptance accepted = Accept(*place.request, sequence, delta, out, now);
  counters_.duplicate_tokens += accepted.duplicates;
  counters_.gaps += !accepted.whole;
  if (const int tokens = static_cast<int>(out.tokens.size()); tokens > 0) {
    sequence.promised -= tokens;
    shares_.ChargeOutput(place.request->tenant, tokens);
    rate_.Add(shares_.CostOf(0, tokens));
  }
  if (accepted.whole && delta.finish && !GivesBack(delta)) {
    Finish(place, delta, std::move(out), now);
    return;
  }
  if (!out.tokens.empty() || !out.prompt.empty()) actions_.deltas.push_back(std::move(out));
  if (accepted.whole && !delta.finish) return;
  if (delta.finish) {
    Detach(place);
  } else {
    Recall(place);
  }
  Interrupt(place, /*failed=*/!Declines(delta), now);
  PlaceAll(now);
}

void RouterCore::Finish(Place place, LeaderDelta& delta, ChoiceDelta out, TimeUs now) {
  const LiveRequest& request = *place.request;
  RoutedSequence& sequence = place.sequence();
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
  Detach(place);
  End(place, std::move(end), std::move(out));
  PlaceAll(now);
}

void RouterCore::PlaceAll(TimeUs now) {
  PlaceInterrupted(now);
  PlaceQueued(now);
  rate_.SetBusy(!queue_.empty(), now);
  RelieveFront(now);
}

void RouterCore::PlaceInterrupted(TimeUs now) {
  if (interrupted_ == 0) return;
  for (auto wait = waits_.begin(); wait != waits_.end();) {
    if (!groups_.any_room()) return;
    const auto [give_up, id, index] = *wait++;  // PlaceOn() erases the wait
    const Place place{Find(id), index};
    if (place.sequence().phase != Phase::kInterrupted) continue;
    if (const auto choice = Choose(place)) PlaceOn(*choice, place, /*chosen=*/false, now);
  }
}

void RouterCore::PlaceQueued(TimeUs now) {
  while (const std::optional<RequestId> front = queue_.Front()) {
    LiveRequest& request = *Find(*front);
    const Place place{&request, request.waiting.back()};
    const auto choice = Choose(place);
    if (choice) {
      PlaceOn(*choice, place, /*chosen=*/true, now);
    } else if (!MoveFrontAside(place, now)) {
      return;
    }
  }
}

bool RouterCore::MoveFrontAside(Place place, TimeUs now) {
  const RoutedSequence& sequence = place.sequence();
  if (!sequence.fresh()) {
    // While its own groups are busy, others may serve those behind it.
    if (!groups_.any_room()) return false;
    Unqueue(place);
    AwaitGroup(place, now);
    return true;
  }
  const int64_t tokens = place.request->known_tokens(sequence);
  const int longest = groups_.context_tokens_max();
  if (longest == 0 || tokens < longest) return false;
  EndRequest(place.request->id, EndReason::kError,
             InvalidArgument("prompts[{}]: {} tokens do not fit the context of {} tokens",
                             sequence.prompt_index, tokens, longest),
             now);
  return true;
}

std::optional<PlacementChoice> RouterCore::Choose(Place place) {
  LiveRequest& request = *place.request;
  const RoutedSequence& sequence = place.sequence();
  const auto links = [&](int block_tokens) -> std::span<const uint64_t> {
    // A prompt whose log-probabilities are wanted is computed whole.
    if (request.request.prompt_logprobs) return {};
    return LinksOf(request, sequence, block_tokens);
  };
  PlacementWish wish{
      .tokens = request.known_tokens(sequence), .fingerprint = BoundTo(sequence), .links = links};
  // Where it just failed without a token it may fail again.
  if (sequence.fruitless_deaths + sequence.fruitless_declines > 0) wish.avoid = sequence.group;
  return placement_.Choose(wish);
}

void RouterCore::PlaceOn(const PlacementChoice& choice, Place place, bool chosen, TimeUs now) {
  const LiveRequest& request = *place.request;
  RoutedSequence& sequence = place.sequence();
  const int64_t to_compute = request.known_tokens(sequence) - choice.cached_tokens;
  counters_.prefix_tokens += choice.cached_tokens;
  if (sequence.phase == Phase::kQueued) {
    Unqueue(place);
  } else {
    SetWait(place, kNever);
    --interrupted_;
    ++counters_.resubmissions;
  }
  if (++sequence.submissions == 1) {
    sequence.placed_at = now;
    const int emitted = static_cast<int>(sequence.emitted.size());
    sequence.promised = std::max(0, request.prompt(sequence).max_tokens - emitted);
    shares_.ChargePlacement(request.tenant, to_compute, sequence.promised, chosen);
    rate_.Add(shares_.CostOf(to_compute, 0));
  }
  sequence.phase = Phase::kRunning;
  sequence.number = SequenceId{++last_sequence_};
  sequence.group = choice.group;
  sequence.fingerprint = groups_.fingerprint(choice.group);
  running_.Add(place);
  SubmitAction submit = SubmitOf(request, sequence);
  groups_.Start(choice.group, std::ssize(submit.tokens));
  actions_.submits.push_back(std::move(submit));
}

void RouterCore::RelieveFront(TimeUs now) {
  unfair_at_ = kNever;
  const FairnessOptions& fairness = options_.fairness;
  if (fairness.unfair_wait_us == 0 || outage_) return;
  const std::optional<RequestId> front = queue_.Front();
  if (!front) return;
  const TimeUs due = std::max(queue_.at(*front).since + fairness.unfair_wait_us,
                              relieved_at_ + fairness.interval_us);
  if (now < due) {
    unfair_at_ = due;
    return;
  }
  relieved_at_ = now;
  LiveRequest& request = *Find(*front);
  if (const auto victim = FindVictim({&request, request.waiting.back()})) {
    TakeBack(*victim, now);
    unfair_at_ = now + fairness.interval_us;
  }
}

std::optional<SequencePlace> RouterCore::FindVictim(Place front) const {
  const FairnessOptions& fairness = options_.fairness;
  const auto share = [this](TenantSlot slot) {
    return static_cast<double>(running_.Of(slot).size()) / shares_.weight(slot);
  };
  const int64_t tokens = front.request->known_tokens(front.sequence());
  const auto fingerprint = BoundTo(front.sequence());
  const int64_t had = shares_.counter(front.request->tenant);
  std::optional<Place> victim;
  double most = share(front.request->tenant) + fairness.skew_max;
  for (TenantSlot slot = 0; slot < shares_.slots(); ++slot) {
    if (share(slot) <= most || shares_.counter(slot) <= had) continue;
    for (const SequenceId number : running_.Of(slot)) {
      const Place place = *running_.Find(number);
      const RoutedSequence& sequence = place.sequence();
      if (sequence.phase != Phase::kRunning) continue;
      if (sequence.preemptions >= fairness.preemptions_max) continue;
      if (!groups_.Suits(sequence.group, tokens, fingerprint)) continue;
      victim = place;
      most = share(slot);
      break;
    }
  }
  return victim;
}

void RouterCore::TakeBack(Place victim, TimeUs now) {
  LiveRequest& request = *victim.request;
  RoutedSequence& sequence = victim.sequence();
  Recall(victim);
  ++sequence.preemptions;
  ++counters_.preemptions;
  sequence.phase = Phase::kQueued;
  request.waiting.push_back(victim.index);
  if (request.waiting.size() == 1) {
    Enqueue(request, now);
  } else {
    queue_.Grow(request.id, request.known_tokens(sequence), CostOf(request, sequence));
  }
}

void RouterCore::Detach(Place place) {
  RoutedSequence& sequence = place.sequence();
  running_.Remove(place);
  sequence.number = SequenceId{};
  if (groups_.up(sequence.group)) groups_.End(sequence.group);
}

void RouterCore::Recall(Place place) {
  const RoutedSequence& sequence = place.sequence();
  actions_.cancels.push_back({sequence.group, sequence.number});
  Detach(place);
}

void RouterCore::Interrupt(Place place, bool failed, TimeUs now) {
  const LiveRequest& request = *place.request;
  RoutedSequence& sequence = place.sequence();
  const auto end = [&](EndReason reason, absl::Status status) {
    End(place, MeasuredEnd(request, sequence, reason, std::move(status), now), DeltaOf(place));
  };
  if (sequence.phase == Phase::kStopping) return end(EndReason::kStop, absl::OkStatus());
  if (!failed) failed = ++sequence.fruitless_declines > options_.fruitless_declines_max;
  if (failed && ++sequence.fruitless_deaths >= options_.fruitless_deaths_max) {
    ++counters_.poisoned;
    return end(EndReason::kError, Internal("{} groups in a row failed while they ran this sequence",
                                           sequence.fruitless_deaths));
  }
  if (!sequence.emitted.empty()) {
    ++counters_.migrations;
    // Of tokens that the client brought nobody here knows when they came.
    sequence.migrating = std::ssize(sequence.emitted) > sequence.resumed;
  } else if (sequence.fresh()) {
    if (!retries_.Spend()) {
      ++counters_.sheds[RefusalReason::kRetries];
      return end(EndReason::kError,
                 WithRetryDelay(Unavailable("the group failed before the first token, and too many "
                                            "requests are being retried"),
                                0));
    }
    ++counters_.retries;
  }
  AwaitGroup(place, now);
}

void RouterCore::AwaitGroup(Place place, TimeUs now) {
  const LiveRequest& request = *place.request;
  RoutedSequence& sequence = place.sequence();
  const int max_tokens = request.prompt(sequence).max_tokens;
  if (max_tokens > 0 && std::ssize(sequence.emitted) >= max_tokens) {
    return End(place, MeasuredEnd(request, sequence, EndReason::kLength, absl::OkStatus(), now),
               DeltaOf(place));
  }
  sequence.phase = Phase::kInterrupted;
  ++interrupted_;
  SetWait(place, now + options_.group_wait_us);
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

void RouterCore::RestartWaits(const std::string& fingerprint, TimeUs now) {
  std::vector<Place> waiting;
  for (const auto& [give_up, id, index] : waits_) waiting.push_back({Find(id), index});
  for (const Place& place : waiting) {
    const RoutedSequence& sequence = place.sequence();
    if (sequence.phase != Phase::kInterrupted) continue;
    if (BoundTo(sequence).value_or(fingerprint) == fingerprint) {
      SetWait(place, now + options_.group_wait_us);
    }
  }
}

void RouterCore::SetWait(Place place, TimeUs give_up) {
  RoutedSequence& sequence = place.sequence();
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
    const RoutedSequence& sequence = place.sequence();
    if (sequence.phase == Phase::kStopping) {
      End(place, MeasuredEnd(*place.request, sequence, EndReason::kStop, absl::OkStatus(), now),
          DeltaOf(place));
    } else if (groups_.Serves(BoundTo(sequence))) {
      SetWait(place, now + options_.group_wait_us);  // a group is there and busy
    } else {
      const absl::Status status = Unavailable(
          "the group was lost after {} output tokens and no equal one came up within "
          "{} s",
          sequence.emitted.size(), options_.group_wait_us / 1'000'000);
      End(place,
          MeasuredEnd(*place.request, sequence, EndReason::kError, WithRetryDelay(status, 0), now),
          DeltaOf(place));
    }
  }
}

void RouterCore::ExpireQueue(TimeUs now) {
  if (groups_.none_since() != kNever && now - groups_.none_since() >= options_.group_wait_us) {
    while (const std::optional<RequestId> front = queue_.Front()) {
      Shed(*front, {RefusalReason::kNoGroup, Unavailable("no group of shard workers is ready")},
           now);
    }
  }
  if (outage_) return;
  while (const auto hopeless = queue_.FirstHopeless()) {
    if (hopeless->first > now) return;
    Shed(hopeless->second,
         {RefusalReason::kTtft,
          ResourceExhausted("no group has begun it within {} ms", options_.ttft_target_us / 1000)},
         now);
  }
}

TimeUs RouterCore::NextWake() const {
  TimeUs wake = unfair_at_;
  if (!deadlines_.empty()) wake = std::min(wake, deadlines_.begin()->first);
  if (!waits_.empty()) wake = std::min(wake, std::get<TimeUs>(*waits_.begin()));
  if (!queue_.empty() && groups_.none_since() != kNever) {
    wake = std::min(wake, groups_.none_since() + options_.group_wait_us);
  }
  if (const auto hopeless = queue_.FirstHopeless(); hopeless && !outage_) {
    wake = std::min(wake, hopeless->first);
  }
  return wake;
}

}  // namespace facet
