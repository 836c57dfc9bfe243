// RouterCore: what must hold between any two events.

#include <algorithm>
#include <vector>

#include "base/status.h"
#include "router/core/router_core.h"

namespace facet {

absl::Status RouterCore::Check() const {
  FACET_RETURN_IF_ERROR(groups_.Check());
  FACET_RETURN_IF_ERROR(shares_.Check());
  FACET_RETURN_IF_ERROR(queue_.Check());
  int64_t placed = 0, interrupted = 0, waits = 0, queued = 0, deadlines = 0;
  std::vector<int64_t> own(groups_.size());
  for (const auto& [id, request] : requests_) {
    FACET_RETURN_IF_ERROR(CheckRequest(*request));
    queued += queue_.contains(id);
    deadlines += request->request.deadline != kNever;
    for (const RoutedSequence& sequence : request->sequences) {
      const bool on_group = sequence.number.value != 0;
      placed += on_group;
      if (on_group) ++own[sequence.group.value];
      interrupted += sequence.phase == Phase::kInterrupted;
      waits += sequence.give_up != kNever;
    }
  }
  if (placed != running_.size() || interrupted != interrupted_ || waits != std::ssize(waits_)) {
    return Internal("{} sequences run, {} are interrupted, {} wait; listed: {}, {}, {}", placed,
                    interrupted, waits, running_.size(), interrupted_, waits_.size());
  }
  if (queued != queue_.use().requests || deadlines != std::ssize(deadlines_) ||
      requests_.size() != client_ids_.size()) {
    return Internal("{} requests queued, {} with deadlines, {} in all; listed: {}, {}, {}", queued,
                    deadlines, requests_.size(), queue_.use().requests, deadlines_.size(),
                    client_ids_.size());
  }
  for (uint32_t i = 0; i < groups_.size(); ++i) {
    if (own[i] != groups_.own(GroupId{i})) {
      return Internal("group {}: {} sequences, counted {}", i, groups_.own(GroupId{i}), own[i]);
    }
  }
  FACET_RETURN_IF_ERROR(CheckTenants());
  return CheckWakes();
}

absl::Status RouterCore::CheckRequest(const LiveRequest& request) const {
  size_t alive = 0;
  int64_t tokens = 0, cost = 0;
  std::vector<size_t> waiting;
  for (size_t i = 0; i < request.sequences.size(); ++i) {
    const RoutedSequence& sequence = request.sequences[i];
    FACET_RETURN_IF_ERROR(CheckSequence(request, i));
    alive += sequence.phase != Phase::kEnded;
    if (sequence.phase != Phase::kQueued) continue;
    waiting.push_back(i);
    tokens += request.known_tokens(sequence);
    cost += CostOf(request, sequence);
  }
  std::vector<size_t> listed = request.waiting;
  std::sort(listed.begin(), listed.end());
  if (alive == 0 || alive != request.alive || listed != waiting) {
    return Internal("request {}: {} of {} alive, {} of {} wait", request.id.value, alive,
                    request.alive, waiting.size(), listed.size());
  }
  const auto id = client_ids_.find(request.request.client_id);
  if (id == client_ids_.end() || id->second != request.id) {
    return Internal("request {} is not found by its client's id", request.id.value);
  }
  if (queue_.contains(request.id) != (!request.paused && !waiting.empty())) {
    return Internal("request {} has {} waiting sequences and is queued: {}", request.id.value,
                    waiting.size(), queue_.contains(request.id));
  }
  if (!queue_.contains(request.id)) return absl::OkStatus();
  const QueuedRequest& entry = queue_.at(request.id);
  if (entry.tokens != tokens || entry.cost != cost || entry.tenant != request.tenant) {
    return Internal("request {} is queued with {} tokens and cost {}, has {} and {}",
                    request.id.value, entry.tokens, entry.cost, tokens, cost);
  }
  return absl::OkStatus();
}

absl::Status RouterCore::CheckSequence(const LiveRequest& request, size_t index) const {
  const RoutedSequence& sequence = request.sequences[index];
  const auto wrong = [&](const char* what) {
    return Internal("sequence {} of request {} in phase {}: {}", index, request.id.value,
                    static_cast<int>(sequence.phase), what);
  };
  const bool on_group = sequence.phase == Phase::kRunning || sequence.phase == Phase::kStopping;
  if (on_group != (sequence.number.value != 0)) return wrong("its number and its phase disagree");
  if (on_group) {
    const auto found = running_.Find(sequence.number);
    if (!found || found->request != &request || found->index != index) {
      return wrong("it is not found by its number");
    }
    if (!groups_.up(sequence.group)) return wrong("its group is down");
    if (!running_.Of(request.tenant).contains(sequence.number)) {
      return wrong("it is not among its tenant's");
    }
  }
  const bool waits = sequence.phase == Phase::kStopping || sequence.phase == Phase::kInterrupted;
  if (waits != (sequence.give_up != kNever)) return wrong("its wait and its phase disagree");
  if (waits && !waits_.contains({sequence.give_up, request.id, index})) {
    return wrong("nobody wakes it");
  }
  if (request.paused &&
      (sequence.phase == Phase::kRunning || sequence.phase == Phase::kInterrupted)) {
    return wrong("its request is paused");
  }
  if (!request.paused && sequence.phase == Phase::kPaused) return wrong("its pause is over");
  if (std::ssize(sequence.emitted) > request.prompt(sequence).max_tokens) {
    return wrong("it has more tokens than were asked for");
  }
  if (sequence.phase == Phase::kEnded && sequence.promised != 0) {
    return wrong("it has ended and promises tokens");
  }
  if (sequence.preemptions > options_.fairness.preemptions_max) {
    return wrong("it has given way too often");
  }
  return absl::OkStatus();
}

absl::Status RouterCore::CheckTenants() const {
  std::vector<int64_t> live(shares_.slots()), promised(shares_.slots()), running(shares_.slots());
  for (const auto& [id, request] : requests_) {
    ++live[request->tenant];
    for (const RoutedSequence& sequence : request->sequences) {
      promised[request->tenant] += sequence.promised;
      running[request->tenant] += sequence.number.value != 0;
    }
  }
  for (TenantSlot slot = 0; slot < shares_.slots(); ++slot) {
    if (live[slot] != shares_.live_requests(slot) || promised[slot] != shares_.promised(slot) ||
        running[slot] != std::ssize(running_.Of(slot))) {
      return Internal(
          "tenant `{}` has {} requests, {} running sequences and {} promised tokens; "
          "listed: {}, {}, {}",
          shares_.name(slot), live[slot], running[slot], promised[slot],
          shares_.live_requests(slot), running_.Of(slot).size(), shares_.promised(slot));
    }
  }
  return absl::OkStatus();
}

absl::Status RouterCore::CheckWakes() const {
  // While a group takes requests its states drive the queue; a paused request is its client's.
  if (!queue_.empty() && groups_.none_since() != kNever && NextWake() == kNever) {
    return Internal("requests wait for a group, and nobody wakes them");
  }
  for (const auto& [deadline, id] : deadlines_) {
    const LiveRequest* request = Find(id);
    if (request == nullptr || request->request.deadline != deadline) {
      return Internal("request {} is gone and its deadline is not", id.value);
    }
  }
  for (const auto& [give_up, id, index] : waits_) {
    const LiveRequest* request = Find(id);
    if (request == nullptr || index >= request->sequences.size() ||
        request->sequences[index].give_up != give_up) {
      return Internal("sequence {} of request {} does not wait any more", index, id.value);
    }
  }
  return absl::OkStatus();
}

}  // namespace facet
