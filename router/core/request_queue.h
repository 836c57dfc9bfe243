#ifndef FACET_ROUTER_CORE_REQUEST_QUEUE_H_
#define FACET_ROUTER_CORE_REQUEST_QUEUE_H_

// The requests that wait for a group, and the order in which they get one: the tenant that has had
// least (tenant_shares.h), then higher priority, then the earlier deadline, then arrival.
//
// The queue is bounded. When it is full, a tenant that fills less of it than another may push that
// one's last requests out: a flood costs its sender its own places and nobody else's.
// Not thread-safe; the router core owns it.

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "router/core/refusal.h"
#include "router/core/request.h"
#include "router/core/tenant_shares.h"

namespace facet {

struct RequestQueueOptions {
  int64_t requests_max = 1024;
  int64_t tokens_max = int64_t{4} << 20;  // prompt tokens, each choice counted
  int64_t bytes_max = int64_t{256} << 20;
  int evictions_max = 64;  // that one arrival may cause
};

// What a request or a tenant takes of the queue.
struct QueueUse {
  int64_t requests = 0;
  int64_t tokens = 0;
  int64_t bytes = 0;

  QueueUse& operator+=(const QueueUse& other);
  QueueUse& operator-=(const QueueUse& other);
  friend bool operator==(const QueueUse&, const QueueUse&) = default;
};

struct QueuedRequest {
  RequestId id;
  TenantSlot tenant = 0;
  int priority = 0;
  TimeUs deadline = kNever;
  TimeUs since = 0;             // when it began to wait
  TimeUs hopeless_at = kNever;  // when it need not wait any longer, unless it has started
  int64_t tokens = 0;           // known tokens of the sequences that wait
  int64_t bytes = 0;
  int64_t cost = 0;      // of the sequences that wait (TenantShares::CostOf)
  bool started = false;  // some of it has run: it is not pushed out
};

class RequestQueue {
 public:
  // `shares` must outlive the queue.
  RequestQueue(const RequestQueueOptions& options, TenantShares& shares)
      : options_(options), shares_(shares) {}

  // Whether a request may enter: if requests have to leave for it, they are added to `victims`, for
  // the caller to remove. Else ResourceExhausted with the bound that is reached. An empty queue
  // takes any request.
  std::optional<Refusal> Admit(TenantSlot tenant, const QueueUse& use,
                               std::vector<RequestId>& victims) const;
  // REQUIRES: the id is new.
  void Push(const QueuedRequest& request);
  // The request whose turn it is.
  std::optional<RequestId> Front();
  // One sequence of `id` has been placed, has ended or waits elsewhere; the last one takes the
  // request out. REQUIRES: `id` is in the queue.
  void Shrink(RequestId id, int64_t tokens, int64_t cost);
  // One sequence more of `id` waits; it has run before. REQUIRES: `id` is in the queue.
  void Grow(RequestId id, int64_t tokens, int64_t cost);
  // REQUIRES: `id` is in the queue.
  void Remove(RequestId id);

  // The first request that becomes hopeless, and when.
  std::optional<std::pair<TimeUs, RequestId>> FirstHopeless() const;
  // None is hopeless before `at`.
  void PutOffHopeless(TimeUs at);

  bool empty() const { return entries_.empty(); }
  const QueueUse& use() const { return use_; }
  // REQUIRES: `id` is in the queue.
  const QueuedRequest& at(RequestId id) const;
  bool contains(RequestId id) const { return entries_.contains(id); }
  int64_t requests_of(TenantSlot tenant) const;
  // What a request of the tenant with this priority finds before it, in cost.
  int64_t CostBefore(TenantSlot tenant, int priority) const;
  // The tenant's part of the weights of all that wait, itself included.
  double ShareOf(TenantSlot tenant) const;
  // The first invariant that does not hold.
  absl::Status Check() const;

 private:
  struct Place {
    int priority;
    TimeUs deadline;
    RequestId id;  // ids ascend with arrival
    friend std::strong_ordering operator<=>(const Place& a, const Place& b) {
      if (auto order = b.priority <=> a.priority; order != 0) return order;
      if (auto order = a.deadline <=> b.deadline; order != 0) return order;
      return a.id <=> b.id;
    }
    friend bool operator==(const Place&, const Place&) = default;
  };
  static Place PlaceOf(const QueuedRequest& request) {
    return {request.priority, request.deadline, request.id};
  }
  // The requests of one tenant.
  struct Line {
    std::set<Place> order;
    QueueUse use;
    std::map<int, int64_t, std::greater<>> cost;  // by priority
    int64_t turn = 0;                             // its counter in turns_
  };

  // The waiting tenant with the least counter.
  std::optional<TenantSlot> NextTenant();
  void AddCost(Line& line, int priority, int64_t cost);
  bool TooMuch(const QueueUse& use) const;
  // The part of the queue that `use` fills, by the tenant's weight.
  double Fill(TenantSlot tenant, const QueueUse& use) const;
  Refusal Full(const QueueUse& use) const;

  RequestQueueOptions options_;
  TenantShares& shares_;
  absl::flat_hash_map<RequestId, QueuedRequest> entries_;
  std::vector<Line> lines_;  // by slot
  // The tenants that wait, by counters that may be old. Counters only rise, so the first one is the
  // least once it has been brought up to date and still is the first.
  std::set<std::pair<int64_t, TenantSlot>> turns_;
  std::set<std::pair<TimeUs, RequestId>> hopeless_;
  QueueUse use_;
  double weight_ = 0;  // of the tenants that wait
};

}  // namespace facet

#endif  // FACET_ROUTER_CORE_REQUEST_QUEUE_H_
