#include "router/core/request_queue.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"
#include "base/status.h"

namespace facet {

QueueUse& QueueUse::operator+=(const QueueUse& other) {
  requests += other.requests;
  tokens += other.tokens;
  bytes += other.bytes;
  return *this;
}

QueueUse& QueueUse::operator-=(const QueueUse& other) {
  requests -= other.requests;
  tokens -= other.tokens;
  bytes -= other.bytes;
  return *this;
}

std::optional<Refusal> RequestQueue::Admit(TenantSlot tenant, const QueueUse& use,
                                           std::vector<RequestId>& victims) const {
  QueueUse all = use_;
  all += use;
  if (entries_.empty() || !TooMuch(all)) return std::nullopt;

  struct Candidate {
    TenantSlot tenant;
    QueueUse use;
    std::set<Place>::const_reverse_iterator last;
  };
  std::vector<Candidate> others;
  QueueUse own = use;
  for (const auto& [counter, slot] : turns_) {
    const Line& line = lines_[slot];
    if (slot == tenant) {
      own += line.use;
    } else {
      others.push_back({slot, line.use, line.order.rbegin()});
    }
  }
  const double own_fill = Fill(tenant, own);
  const Refusal refusal = Full(all);
  std::vector<RequestId> found;
  while (TooMuch(all)) {
    const auto most = std::max_element(others.begin(), others.end(),
                                       [this](const Candidate& a, const Candidate& b) {
                                         return Fill(a.tenant, a.use) < Fill(b.tenant, b.use);
                                       });
    if (most == others.end() || Fill(most->tenant, most->use) <= own_fill ||
        std::ssize(found) >= options_.evictions_max) {
      return refusal;
    }
    const std::set<Place>& order = lines_[most->tenant].order;
    while (most->last != order.rend() && at(most->last->id).started) ++most->last;
    if (most->last == order.rend()) {
      others.erase(most);
      continue;
    }
    const QueuedRequest& victim = at(most->last->id);
    const QueueUse freed{1, victim.tokens, victim.bytes};
    found.push_back(victim.id);
    most->use -= freed;
    all -= freed;
    ++most->last;
  }
  victims.insert(victims.end(), found.begin(), found.end());
  return std::nullopt;
}

bool RequestQueue::TooMuch(const QueueUse& use) const {
  return use.requests > options_.requests_max || use.tokens > options_.tokens_max ||
         use.bytes > options_.bytes_max;
}

double RequestQueue::Fill(TenantSlot tenant, const QueueUse& use) const {
  const auto part = [](int64_t used, int64_t most) {
    return static_cast<double>(used) / static_cast<double>(most);
  };
  return std::max({part(use.requests, options_.requests_max), part(use.tokens, options_.tokens_max),
                   part(use.bytes, options_.bytes_max)}) /
         shares_.weight(tenant);
}

Refusal RequestQueue::Full(const QueueUse& use) const {
  if (use.requests > options_.requests_max) {
    return {RefusalReason::kQueueRequests,
            ResourceExhausted("the queue is full: {} requests wait, at most {} may", use_.requests,
                              options_.requests_max)};
  }
  if (use.tokens > options_.tokens_max) {
    return {RefusalReason::kQueueTokens,
            ResourceExhausted(
                "the queue is full: {} prompt tokens wait, {} more would pass the bound of {}",
                use_.tokens, use.tokens - use_.tokens, options_.tokens_max)};
  }
  return {RefusalReason::kQueueBytes,
          ResourceExhausted("the queue is full: {} bytes wait, {} more would pass the bound of {}",
                            use_.bytes, use.bytes - use_.bytes, options_.bytes_max)};
}

void RequestQueue::Push(const QueuedRequest& request) {
  const bool fresh = entries_.emplace(request.id, request).second;
  FACET_CHECK(fresh, "request {} is queued already", request.id.value);
  const TenantSlot tenant = request.tenant;
  if (tenant >= std::ssize(lines_)) lines_.resize(static_cast<size_t>(tenant) + 1);
  Line& line = lines_[tenant];
  if (line.order.empty()) {
    std::optional<int64_t> least;
    if (const auto next = NextTenant()) least = shares_.counter(*next);
    shares_.Lift(tenant, least);
    line.turn = shares_.counter(tenant);
    turns_.emplace(line.turn, tenant);
    weight_ += shares_.weight(tenant);
  }
  line.order.insert(PlaceOf(request));
  const QueueUse use{1, request.tokens, request.bytes};
  line.use += use;
  use_ += use;
  AddCost(line, request.priority, request.cost);
  if (request.hopeless_at != kNever && !request.started) {
    hopeless_.emplace(request.hopeless_at, request.id);
  }
}

std::optional<TenantSlot> RequestQueue::NextTenant() {
  while (!turns_.empty()) {
    const auto [counter, tenant] = *turns_.begin();
    const int64_t present = shares_.counter(tenant);
    if (counter == present) return tenant;
    turns_.erase(turns_.begin());
    lines_[tenant].turn = present;
    turns_.emplace(present, tenant);
  }
  return std::nullopt;
}

std::optional<RequestId> RequestQueue::Front() {
  const std::optional<TenantSlot> tenant = NextTenant();
  if (!tenant) return std::nullopt;
  return lines_[*tenant].order.begin()->id;
}

void RequestQueue::AddCost(Line& line, int priority, int64_t cost) {
  const auto entry = line.cost.try_emplace(priority, 0).first;
  entry->second += cost;
  if (entry->second == 0) line.cost.erase(entry);
}

void RequestQueue::Shrink(RequestId id, int64_t tokens, int64_t cost) {
  const auto entry = entries_.find(id);
  FACET_CHECK(entry != entries_.end() && entry->second.tokens >= tokens);
  QueuedRequest& request = entry->second;
  Line& line = lines_[request.tenant];
  request.tokens -= tokens;
  request.cost -= cost;
  line.use.tokens -= tokens;
  use_.tokens -= tokens;
  AddCost(line, request.priority, -cost);
  if (!std::exchange(request.started, true)) hopeless_.erase({request.hopeless_at, id});
}

void RequestQueue::Grow(RequestId id, int64_t tokens, int64_t cost) {
  Shrink(id, 0, 0);  // it has started, if nobody knew
  QueuedRequest& request = entries_.at(id);
  Line& line = lines_[request.tenant];
  request.tokens += tokens;
  request.cost += cost;
  line.use.tokens += tokens;
  use_.tokens += tokens;
  AddCost(line, request.priority, cost);
}

void RequestQueue::Remove(RequestId id) {
  const auto entry = entries_.find(id);
  FACET_CHECK(entry != entries_.end(), "request {} is not queued", id.value);
  const QueuedRequest& request = entry->second;
  Line& line = lines_[request.tenant];
  const QueueUse use{1, request.tokens, request.bytes};
  line.use -= use;
  use_ -= use;
  AddCost(line, request.priority, -request.cost);
  hopeless_.erase({request.hopeless_at, id});
  line.order.erase(PlaceOf(request));
  if (line.order.empty()) {
    turns_.erase({line.turn, request.tenant});
    weight_ = turns_.empty() ? 0 : weight_ - shares_.weight(request.tenant);
  }
  entries_.erase(entry);
}

std::optional<std::pair<TimeUs, RequestId>> RequestQueue::FirstHopeless() const {
  if (hopeless_.empty()) return std::nullopt;
  return *hopeless_.begin();
}

void RequestQueue::PutOffHopeless(TimeUs at) {
  while (!hopeless_.empty() && hopeless_.begin()->first < at) {
    const RequestId id = hopeless_.begin()->second;
    hopeless_.erase(hopeless_.begin());
    entries_.at(id).hopeless_at = at;
    hopeless_.emplace(at, id);
  }
}

const QueuedRequest& RequestQueue::at(RequestId id) const {
  const auto entry = entries_.find(id);
  FACET_CHECK(entry != entries_.end(), "request {} is not queued", id.value);
  return entry->second;
}

int64_t RequestQueue::requests_of(TenantSlot tenant) const {
  return tenant < std::ssize(lines_) ? lines_[tenant].use.requests : 0;
}

int64_t RequestQueue::CostBefore(TenantSlot tenant, int priority) const {
  if (tenant >= std::ssize(lines_)) return 0;
  int64_t before = 0;
  for (const auto& [other, cost] : lines_[tenant].cost) {
    if (other < priority) break;
    before += cost;
  }
  return before;
}

double RequestQueue::ShareOf(TenantSlot tenant) const {
  const double own = shares_.weight(tenant);
  return own / (requests_of(tenant) > 0 ? weight_ : weight_ + own);
}

absl::Status RequestQueue::Check() const {
  std::vector<Line> lines(lines_.size());
  QueueUse all;
  size_t impatient = 0;
  for (const auto& [id, request] : entries_) {
    Line& line = lines[request.tenant];
    const QueueUse use{1, request.tokens, request.bytes};
    line.use += use;
    all += use;
    line.cost[request.priority] += request.cost;
    if (!lines_[request.tenant].order.contains(PlaceOf(request))) {
      return Internal("request {} is queued and not in its tenant's line", id.value);
    }
    const bool hopeful = request.hopeless_at != kNever && !request.started;
    impatient += hopeful;
    if (hopeful != hopeless_.contains({request.hopeless_at, id})) {
      return Internal("request {} is queued and its patience is not", id.value);
    }
  }
  if (!(all == use_) || impatient != hopeless_.size()) {
    return Internal("the queue's sums are {} requests and {} tokens, counted {} and {}",
                    use_.requests, use_.tokens, all.requests, all.tokens);
  }
  size_t waiting = 0;
  for (TenantSlot slot = 0; slot < std::ssize(lines_); ++slot) {
    const Line& line = lines_[slot];
    std::erase_if(lines[slot].cost, [](const auto& cost) { return cost.second == 0; });
    if (!(line.use == lines[slot].use) || line.cost != lines[slot].cost ||
        std::ssize(line.order) != line.use.requests) {
      return Internal("the sums of tenant `{}` in the queue are wrong", shares_.name(slot));
    }
    if (line.order.empty()) continue;
    ++waiting;
    if (!turns_.contains({line.turn, slot}) || line.turn > shares_.counter(slot)) {
      return Internal("tenant `{}` waits and gets no turn", shares_.name(slot));
    }
    if (shares_.counter(slot) < shares_.floor()) {
      return Internal("tenant `{}` waits with a counter of {}, the floor is {}", shares_.name(slot),
                      shares_.counter(slot), shares_.floor());
    }
  }
  if (waiting != turns_.size()) {
    return Internal("{} tenants wait, {} have a turn", waiting, turns_.size());
  }
  return absl::OkStatus();
}

}  // namespace facet
