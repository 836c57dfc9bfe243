#include "router/core/router_core.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "base/check.h"
#include "base/prng.h"
#include "base/status.h"
#include "router/core/cache_salt.h"

namespace facet {

RouterCore::RouterCore(const RouterCoreOptions& options, TimeUs now)
    : options_(options),
      groups_(options.mirror_links_max, now),
      placement_(options.placement, groups_, options.seed),
      shares_(options.tenants),
      queue_(options.queue, shares_),
      rate_(options.rate_window_us),
      retries_(options.retries),
      relieved_at_(now - options.fairness.interval_us) {}

absl::StatusOr<RequestId> RouterCore::Submit(RouterRequest request, TimeUs now) {
  FACET_CHECK(!request.prompts.empty() && request.n >= 1);
  FACET_RETURN_IF_ERROR(CheckNew(request, now));
  if (groups_.none_since() != kNever && now - groups_.none_since() >= options_.group_wait_us) {
    return Refuse({RefusalReason::kNoGroup, Unavailable("no group of shard workers is ready")}, 0);
  }
  const std::optional<TenantSlot> tenant = shares_.Enter(request.tenant);
  if (!tenant) {
    return Refuse(
        {RefusalReason::kTenants, ResourceExhausted("{} tenants have live requests, no more may",
                                                    options_.tenants.tenants_max)},
        0);
  }
  auto made = std::make_unique<LiveRequest>();
  LiveRequest& live = *made;
  live.tenant = *tenant;
  live.arrived_at = now;
  live.request = std::move(request);
  live.cache_salt = CacheSalt(live.request.tenant);
  live.expected_output = shares_.ExpectedOutput(*tenant, std::numeric_limits<int>::max());
  MakeSequences(live);
  std::vector<RequestId> victims;
  if (std::optional<Refusal> refusal = Admit(live, victims, now)) {
    const TimeUs wait = PredictTtft(*tenant, live.request.priority, now);
    shares_.Leave(*tenant);
    return Refuse(*std::move(refusal), wait - options_.ttft_target_us);
  }

  for (const RequestId victim : victims) {
    Shed(victim,
         {RefusalReason::kTenantShare,
          ResourceExhausted("the queue is full, and tenant `{}` fills more than its share of it",
                            Find(victim)->request.tenant)},
         now);
  }
  if (const auto old = client_ids_.find(live.request.client_id); old != client_ids_.end()) {
    ++counters_.takeovers;
    EndRequest(old->second, EndReason::kCancelled,
               MakeStatus(absl::StatusCode::kCancelled, "another stream took the request over"),
               now);
  }
  retries_.Earn();
  const RequestId id{++last_request_};
  live.id = id;
  if (live.alive == 0) {
    shares_.Leave(*tenant);
    actions_.done.push_back(id);
    return id;
  }
  requests_.emplace(id, std::move(made));
  client_ids_.emplace(live.request.client_id, id);
  if (live.request.deadline != kNever) deadlines_.emplace(live.request.deadline, id);
  if (!live.waiting.empty()) Enqueue(live, now);
  AwaitGroups(live, now);
  PlaceAll(now);
  return id;
}

absl::Status RouterCore::CheckNew(const RouterRequest& request, TimeUs now) const {
  FACET_RETURN_IF_ERROR(CheckResume(request));
  if (const auto old = client_ids_.find(request.client_id); old != client_ids_.end()) {
    if (!request.takes_over || Find(old->second)->request.tenant != request.tenant) {
      return MakeStatus(absl::StatusCode::kAlreadyExists,
                        fmt::format("request_id: `{}` is in use", request.client_id));
    }
  }
  if (request.deadline <= now) return DeadlineExceeded("the request's deadline passed");
  return absl::OkStatus();
}

std::optional<Refusal> RouterCore::Admit(const LiveRequest& request,
                                         std::vector<RequestId>& victims, TimeUs now) const {
  if (std::ssize(requests_) >= options_.requests_max) {
    return Refusal{RefusalReason::kRequests,
                   ResourceExhausted("{} requests are alive, no more may", requests_.size())};
  }
  if (GoesOn(request)) {
    // Its other choices are few; what is there already is worth more than the order.
    if (queue_.use().requests + interrupted_ < options_.queue.requests_max) return std::nullopt;
    return Refusal{
        RefusalReason::kQueueRequests,
        ResourceExhausted("{} requests and {} sequences that broke off wait, {} may",
                          queue_.use().requests, interrupted_, options_.queue.requests_max)};
  }
  const TimeUs target = options_.ttft_target_us;
  if (target > 0 && !outage_ && !queue_.empty()) {
    const TimeUs ttft = PredictTtft(request.tenant, request.request.priority, now);
    if (ttft > target) {
      return Refusal{RefusalReason::kTtft,
                     ResourceExhausted("the first token is expected after {} ms, at most {} ms are "
                                       "promised",
                                       ttft / 1000, target / 1000)};
    }
  }
  QueueUse use{1, 0, BytesOf(request)};
  for (const size_t i : request.waiting) use.tokens += request.known_tokens(request.sequences[i]);
  return queue_.Admit(request.tenant, use, victims);
}

TimeUs RouterCore::PredictTtft(TenantSlot tenant, int priority, TimeUs now) const {
  TimeUs wait = groups_.LeastPrefillTime();
  if (const double rate = rate_.PerSecond(now) * queue_.ShareOf(tenant); rate > 0) {
    const auto cost = static_cast<double>(queue_.CostBefore(tenant, priority));
    wait += static_cast<TimeUs>(cost * 1e6 / rate);
  }
  return wait;
}

absl::Status RouterCore::WithRetryDelay(absl::Status status, TimeUs estimate) {
  const TimeUs delay = std::clamp(estimate > 0 ? estimate : options_.retry_after_us,
                                  options_.retry_after_min_us, options_.retry_after_max_us);
  // Between three and five quarters of it, so that those refused together come back apart.
  const auto draw = static_cast<TimeUs>(Mix64(options_.seed, ++retry_delays_) % 1024);
  return WithRetryAfter(std::move(status), delay * 3 / 4 + delay / 2 * draw / 1024);
}

absl::Status RouterCore::Refuse(Refusal refusal, TimeUs estimate) {
  ++counters_.refusals[refusal.reason];
  return WithRetryDelay(std::move(refusal.status), estimate);
}

void RouterCore::Shed(RequestId id, Refusal refusal, TimeUs now) {
  ++counters_.sheds[refusal.reason];
  EndRequest(id, EndReason::kError, WithRetryDelay(std::move(refusal.status), 0), now);
}

void RouterCore::Enqueue(const LiveRequest& request, TimeUs now) {
  QueuedRequest entry{.id = request.id,
                      .tenant = request.tenant,
                      .priority = request.request.priority,
                      .deadline = request.request.deadline,
                      .since = now,
                      .bytes = BytesOf(request)};
  if (options_.ttft_target_us > 0) entry.hopeless_at = now + options_.ttft_target_us;
  for (const size_t i : request.waiting) {
    entry.tokens += request.known_tokens(request.sequences[i]);
    entry.cost += CostOf(request, request.sequences[i]);
  }
  entry.started = std::any_of(request.sequences.begin(), request.sequences.end(),
                              [](const RoutedSequence& sequence) {
                                return sequence.submissions > 0 || sequence.resumed > 0;
                              });
  queue_.Push(entry);
}

void RouterCore::Unqueue(Place place) {
  LiveRequest& request = *place.request;
  // It is near the end, where the next one is.
  const auto found = std::find(request.waiting.rbegin(), request.waiting.rend(), place.index);
  FACET_CHECK(found != request.waiting.rend());
  request.waiting.erase(std::next(found).base());
  if (request.paused) return;
  if (request.waiting.empty()) {
    queue_.Remove(request.id);
  } else {
    const RoutedSequence& sequence = place.sequence();
    queue_.Shrink(request.id, request.known_tokens(sequence), CostOf(request, sequence));
  }
}

int64_t RouterCore::CostOf(const LiveRequest& request, const RoutedSequence& sequence) const {
  const RouterPrompt& prompt = request.prompt(sequence);
  const int64_t output = std::min<int64_t>(request.expected_output, prompt.max_tokens);
  const bool charged = sequence.submissions > 0;
  return shares_.CostOf(charged ? 0 : std::ssize(prompt.tokens),
                        std::max<int64_t>(0, output - std::ssize(sequence.emitted)));
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
  RoutedSequence& sequence = place.sequence();
  if (sequence.phase == Phase::kRunning) {
    actions_.cancels.push_back({sequence.group, sequence.number});
    sequence.phase = Phase::kStopping;
    SetWait(place, now + options_.stop_grace_us);
  } else if (sequence.phase != Phase::kStopping && sequence.phase != Phase::kEnded) {
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
    RoutedSequence& sequence = place.sequence();
    if (sequence.phase == Phase::kRunning) {
      Recall(place);
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
  if (!request->waiting.empty()) Enqueue(*request, now);
  AwaitGroups(*request, now);
  PlaceAll(now);
}

void RouterCore::End(Place place, ChoiceEnd end, ChoiceDelta out) {
  LiveRequest& request = *place.request;
  RoutedSequence& sequence = place.sequence();
  FACET_CHECK(sequence.phase != Phase::kEnded);
  if (end.reason == EndReason::kDeadline) CountExpired(sequence.phase);
  if (end.reason == EndReason::kStop || end.reason == EndReason::kLength) {
    shares_.NoteLength(request.tenant, std::ssize(sequence.emitted));
  }
  if (sequence.phase == Phase::kQueued) Unqueue(place);
  if (sequence.number.value != 0) Recall(place);
  if (sequence.phase == Phase::kInterrupted) --interrupted_;
  SetWait(place, kNever);
  shares_.Release(request.tenant, std::exchange(sequence.promised, 0));
  sequence.phase = Phase::kEnded;
  end.request_done = --request.alive == 0;
  out.end = std::move(end);
  actions_.deltas.push_back(std::move(out));
  if (request.alive == 0) Forget(request);
}

void RouterCore::EndRequest(RequestId id, EndReason reason, const absl::Status& status,
                            TimeUs now) {
  LiveRequest* request = Find(id);
  if (request == nullptr) return;
  // The last sequence to end takes the request with it, so what is left is counted beforehand.
  for (size_t left = request->alive, i = 0; left > 0; ++i) {
    const Place place{request, i};
    const RoutedSequence& sequence = place.sequence();
    if (sequence.phase == Phase::kEnded) continue;
    --left;
    const bool complete = sequence.phase == Phase::kStopping;
    End(place,
        MeasuredEnd(*request, sequence, complete ? EndReason::kStop : reason,
                    complete ? absl::OkStatus() : status, now),
        DeltaOf(place));
  }
}

void RouterCore::CountExpired(Phase phase) {
  ExpiredCounts& expired = counters_.expired;
  switch (phase) {
    case Phase::kQueued:
      ++expired.queued;
      break;
    case Phase::kInterrupted:
      ++expired.interrupted;
      break;
    case Phase::kPaused:
      ++expired.paused;
      break;
    default:
      ++expired.running;
  }
}

void RouterCore::Forget(const LiveRequest& request) {
  const RequestId id = request.id;  // the key must outlive the request
  deadlines_.erase({request.request.deadline, id});
  client_ids_.erase(request.request.client_id);
  shares_.Leave(request.tenant);
  requests_.erase(id);
}

LiveRequest* RouterCore::Find(RequestId id) const {
  const auto found = requests_.find(id);
  return found == requests_.end() ? nullptr : found->second.get();
}

RouterCoreStats RouterCore::stats() const {
  return {.requests = std::ssize(requests_),
          .queued_requests = queue_.use().requests,
          .queued_tokens = queue_.use().tokens,
          .queued_bytes = queue_.use().bytes,
          .running_sequences = running_.size(),
          .interrupted_sequences = interrupted_};
}

std::vector<TenantStats> RouterCore::TopTenants(size_t most) const {
  std::vector<TenantStats> tenants;
  for (TenantSlot slot = 0; slot < shares_.slots(); ++slot) {
    TenantStats stats = shares_.Stats(slot);
    stats.queued_requests = queue_.requests_of(slot);
    stats.running_sequences = std::ssize(running_.Of(slot));
    tenants.push_back(std::move(stats));
  }
  const auto had = [](const TenantStats& stats) {
    return stats.prompt_tokens + stats.output_tokens;
  };
  std::stable_sort(tenants.begin(), tenants.end(),
                   [&](const TenantStats& a, const TenantStats& b) { return had(a) > had(b); });
  if (tenants.size() > most) tenants.resize(most);
  return tenants;
}

}  // namespace facet
