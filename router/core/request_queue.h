#ifndef FACET_ROUTER_CORE_REQUEST_QUEUE_H_
#define FACET_ROUTER_CORE_REQUEST_QUEUE_H_

// The requests that wait for a group, and the order in which they get one: higher priority first,
// then the earlier deadline, then arrival. The order lives here alone, so that another one (fair
// shares between tenants) can replace it.
// Not thread-safe; the router core owns it.

#include <compare>
#include <cstdint>
#include <optional>
#include <set>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "router/core/refusal.h"
#include "router/core/request.h"

namespace facet {

struct RequestQueueOptions {
  int64_t requests_max = 1024;
  int64_t tokens_max = int64_t{4} << 20;  // prompt tokens, each choice counted
};

struct QueuedRequest {
  RequestId id;
  std::string tenant;
  int priority = 0;
  TimeUs deadline = kNever;
  int64_t tokens = 0;  // prompt tokens of the sequences that still wait
};

class RequestQueue {
 public:
  explicit RequestQueue(const RequestQueueOptions& options) : options_(options) {}

  // Why a request with `tokens` may not enter: ResourceExhausted with the bound that is reached.
  // An empty queue takes any request.
  std::optional<Refusal> Admit(int64_t tokens) const;
  // REQUIRES: the id is new.
  void Push(const QueuedRequest& request);
  // The request whose turn it is.
  std::optional<RequestId> Front() const;
  // One sequence of `id` has been placed or has ended. REQUIRES: `id` is in the queue.
  void Shrink(RequestId id, int64_t tokens);
  // REQUIRES: `id` is in the queue.
  void Remove(RequestId id);

  int64_t requests() const { return static_cast<int64_t>(entries_.size()); }
  int64_t tokens() const { return tokens_; }

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

  RequestQueueOptions options_;
  absl::flat_hash_map<RequestId, QueuedRequest> entries_;
  std::set<Place> order_;
  int64_t tokens_ = 0;
};

}  // namespace facet

#endif  // FACET_ROUTER_CORE_REQUEST_QUEUE_H_
